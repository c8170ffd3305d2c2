"""Weight files of others, read without running code: sealed unpickling, safetensors, folders."""
