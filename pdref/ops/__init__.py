"""Operations worth a kernel, one folder each: the contract in `__init__`, the definition in `naive`, the kernel in
`triton`; what stock PyTorch can do better than the definition has a file named after its idea."""
