"""Write annotated sentences for RDF stores, Neo4j and brat. Read export_formats.py first."""
