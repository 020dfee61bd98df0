"""How code for a GPU is made: hardware primitives, the compiler, launching, and what the launchers share.

Order of imports: compiler, device, rows, dropout, simt. Each file imports only files that come before it in this list;
the headers include each other in the order prims, common, sums.
"""
