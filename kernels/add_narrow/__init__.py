"""The sum of two arrays, the second of which may be bfloat16 beside float32."""
