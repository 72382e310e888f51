#!/usr/bin/env python3
"""Prints the tensors of an export, a line each: name, dtype, shape, bytes in hexadecimal; sorted.

    read_export.py safetensors FILE     by a reader of its own, after the format's public description
    read_export.py npy DIRECTORY        by numpy
"""

import json
import pathlib
import sys

SIZES = {"F64": 8, "U64": 8, "I64": 8, "F32": 4, "U32": 4, "I32": 4, "F16": 2, "BF16": 2, "U16": 2, "I16": 2, "U8": 1, "I8": 1}


def no_duplicates(pairs):
    names = [name for name, _ in pairs]
    assert len(names) == len(set(names)), f"a key twice in {names}"
    return dict(pairs)


def read_safetensors(path):
    data = pathlib.Path(path).read_bytes()
    length = int.from_bytes(data[:8], "little")
    assert length <= 100_000_000 and 8 + length <= len(data), length
    assert data[8:9] == b"{", "the header begins with {"
    header = json.loads(data[8:8 + length].decode("utf-8"), object_pairs_hook=no_duplicates)
    body = data[8 + length:]
    metadata = header.pop("__metadata__", {})
    assert all(isinstance(value, str) for value in metadata.values()), metadata
    at = 0
    for name, tensor in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
        begin, end = tensor["data_offsets"]
        size = SIZES[tensor["dtype"]]
        for n in tensor["shape"]:
            size *= n
        assert begin == at and end - begin == size, f"{name}: {begin}..{end}, expected {at}..{at + size}"
        at = end
        yield name, tensor["dtype"], tensor["shape"], body[begin:end]
    assert at == len(body), f"{len(body) - at} bytes of no tensor"


def read_npy(directory):
    import numpy
    for path in sorted(pathlib.Path(directory).iterdir()):
        assert path.suffix == ".npy", path
        array = numpy.load(path, allow_pickle=False)
        dtype = {"f": "F", "u": "U", "i": "I"}[array.dtype.kind] + str(array.dtype.itemsize * 8)
        yield path.stem, dtype, list(array.shape), array.tobytes()


def main():
    read = {"safetensors": read_safetensors, "npy": read_npy}[sys.argv[1]]
    for name, dtype, shape, data in sorted(read(sys.argv[2])):
        print(name, dtype, "x".join(map(str, shape)), data.hex())


if __name__ == "__main__":
    main()
