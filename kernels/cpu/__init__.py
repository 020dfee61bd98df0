"""How code for a processor is made: the compiler, threads, vector instructions, random bits.

Order: processor, inlining, claims, compiler, arrays, vector_loops, vector_math, bfloat16, philox, threads, chunks.
"""
