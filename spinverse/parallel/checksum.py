"""CRC-32 of content that lies in parts on several ranks.

A CRC is the remainder of a polynomial over GF(2), and that of A followed by B is
crc(A) x^(8 |B|) + crc(B) modulo the polynomial of CRC-32; what zlib adds before and after (its
documentation of `crc32_combine` says so) cancels. As in zlib, the highest power is the lowest bit.
"""

from __future__ import annotations

import zlib

from mpi4py import MPI

POLYNOMIAL = 0xEDB88320
_ONE, _BYTE = 1 << 31, 1 << 23  # x^0 and x^8


def crc32(part) -> int:
    """CRC-32 of a buffer."""
    return zlib.crc32(part)


def combined(first: int, second: int, length: int) -> int:
    """CRC-32 of A followed by B, from those of A and of B, which is ``length`` bytes long."""
    return _times(first, _power(_BYTE, length)) ^ second


def of_parts(comm: MPI.Comm, part: int, after: int) -> int:
    """CRC-32 of content of which each rank has a part, in the ranks' order. Collective.

    Args:
        comm: the communicator.
        part: CRC of this rank's part; 0 for no part.
        after: bytes of the parts of later ranks.
    """
    return comm.allreduce(_times(part, _power(_BYTE, after)), op=MPI.BXOR)


def _power(a: int, exponent: int) -> int:
    result = _ONE
    while exponent:
        if exponent & 1:
            result = _times(result, a)
        a, exponent = _times(a, a), exponent >> 1
    return result


def _times(a: int, b: int) -> int:
    """The product of two polynomials."""
    result = 0
    while a:
        if a & _ONE:
            result ^= b
        a = (a << 1) & 0xFFFFFFFF
        b = (b >> 1) ^ (POLYNOMIAL if b & 1 else 0)
    return result
