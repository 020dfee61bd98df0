"""How code for a processor is made: the compiler, threads, vector instructions, random bits.

Order of imports: processor, inlining, claims, compiler, arrays, vector_loops, vector_math, bfloat16, philox, threads,
chunks. Each file imports only files that come before it in this list.
"""
