"""Page: ways to show a trace: one HTML file that works offline, a text for the terminal, a graph.

The scripts and styles of the HTML file are in the folder assets.

Order: pack, document, questions, tour, fused, text, graph, write.
"""
