"""Split a text into symbols, and build the automaton of its parts, which are the candidates for names."""

import regex

from extraction.extraction_results import LETTER

SYMBOL = regex.compile(rf"(?V1)\p{{N}}++|[{LETTER}--\p{{N}}]++|[\s\x1c-\x1f]++|.", regex.DOTALL)


def text_symbols(text: str) -> list[str]:
    """Return the words, numbers, other characters and runs of white space of a text, without white space at both ends.

    In Chinese, Japanese, Korean, Thai, Lao, Burmese and Khmer, each character is a symbol.
    """
    return SYMBOL.findall(text.strip())


def parts_automaton(symbols: list[str]) -> list[dict[str, int]]:
    """Return the edges (symbol -> state) of each state of the suffix automaton of a sequence.

    The paths from state 0 are the parts of the sequence (contiguous subsequences), each once. The automaton of n
    symbols has at most 2n states and 3n edges, and its construction is linear in n. Source: Blumer et al. 1985, The
    smallest automaton recognizing the subwords of a text.
    """
    edges: list[dict[str, int]] = [{}]
    # lengths[state]: number of symbols of the longest part that leads to the state. links[state]: the state of the
    # longest suffix of this part that leads to another state; -1 for the start.
    lengths, links, last = [0], [-1], 0
    for symbol in symbols:
        new, state = len(edges), last
        edges.append({})
        lengths.append(lengths[last] + 1)
        last = new
        while state >= 0 and symbol not in edges[state]:
            edges[state][symbol] = new
            state = links[state]
        target = edges[state][symbol] if state >= 0 else 0
        if state >= 0 and lengths[target] > lengths[state] + 1:
            copy = len(edges)
            edges.append(dict(edges[target]))
            lengths.append(lengths[state] + 1)
            links += [copy, links[target]]  # of `new` and of `copy`
            links[target] = copy
            while state >= 0 and edges[state].get(symbol) == target:
                edges[state][symbol] = copy
                state = links[state]
        else:
            links.append(target)
    return edges
