"""Operations worth a kernel, one folder each: the contract in `__init__`, the definition in `naive`."""
