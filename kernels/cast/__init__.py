"""The kernel of `cast`."""
