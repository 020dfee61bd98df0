"""The sum of a float32 array and a bfloat16 one."""
