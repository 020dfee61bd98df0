"""How code for a processor is made: the compiler, threads, vector instructions, random bits.

Order: quota, processor, inlining, claims, progress, compiler, addresses, arrays, vector_loops, vector_math, bfloat16,
philox, words, threads, chunks.
"""
