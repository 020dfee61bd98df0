"""How code for a processor is made: compiler, threads, vectors, random bits."""
