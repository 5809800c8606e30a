"""Export annotations: check the input once, and write a folder in the requested format."""

from collections.abc import Callable
from pathlib import Path

from partial_folders.atomic_outputs import new_folder
from partial_folders.output_paths import folder_path

from graph_exports.brat_files import write_brat
from graph_exports.graph_triples import TripleStore, collect_triples
from graph_exports.neo4j_tables import write_neo4j
from graph_exports.rdf_triples import check_base, write_ntriples


def export_annotations(input: str, format: str, out: str, base: str) -> str:
    """Write the new folder `out` and return a line of counts.

    format: ntriples, neo4j or brat. base: prefix of IRIs in N-Triples. Raises FileNotFoundError, or ValueError with
    file and line for a row that is not an annotated sentence.
    """
    folder_path(out)
    check_base(base)
    if not Path(input).is_file():
        raise FileNotFoundError(f"{input} does not exist; --input takes the output of kg2instruct.py")
    with new_folder(out, 0) as folder:
        if format == "brat":
            files, sentences = write_brat(input, folder)
            return f"{out}: {sentences:,} sentence{'s' * (sentences != 1)} in {files:,} document{'s' * (files != 1)}"
        write: Callable[[TripleStore, Path], None] = write_neo4j
        if format == "ntriples":
            write = lambda store, target: write_ntriples(store, target, base)  # noqa: E731
        store = TripleStore(folder / "triples.sqlite")
        try:
            collect_triples(input, store)
            write(store, folder)
            nodes, triples = store.counts()
        finally:
            store.close()
        return f"{out}: {nodes:,} entities and literals, {triples:,} different triples"
