"""Link a knowledge graph and text: index the graph, find its names, annotate sentences. Read name_matching.py first."""
