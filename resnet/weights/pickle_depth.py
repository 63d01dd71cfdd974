"""A look at a pickle before it is loaded: whether its tuples are nested deeper than any file of weights has reason to.

torch.load with weights_only builds nothing but tensors and containers, and still a kilobyte can keep it busy for ever:
t1 = (t0, t0), t2 = (t1, t1) ... t60 as the key of a dictionary, whose hash takes 2^60 steps. Nothing is built here.
"""

from __future__ import annotations

import pickletools
from collections.abc import Iterator
from typing import Any, BinaryIO

# A tensor's storage stands in a tuple in a tuple in a tuple.
MOST_DEPTH = 16
_MARK = -1


def deepest_tuple(file: BinaryIO) -> int:
    """How deep tuples are nested in the pickle that `file` stands at; reads on to the pickle's end.

    Raises ValueError, or another Exception of pickletools, for what is no pickle.
    """
    return max(_depths(file), default=0)


def _depths(file: BinaryIO) -> Iterator[int]:
    """The depth of every tuple as it is made; other objects count 0, since hashing them asks for nothing below."""
    stack: list[int] = []
    memo: dict[Any, int] = {}
    for opcode, argument, _ in pickletools.genops(file):
        name = opcode.name
        if name in ("PUT", "BINPUT", "LONG_BINPUT"):
            memo[argument] = stack[-1] if stack else 0
        elif name == "MEMOIZE":
            memo[len(memo)] = stack[-1] if stack else 0
        elif name in ("GET", "BINGET", "LONG_BINGET"):
            stack.append(memo.get(argument, 0))
        elif name == "DUP":
            stack.append(stack[-1] if stack else 0)
        else:
            taken = _take(stack, opcode)
            for made in opcode.stack_after:
                if made is pickletools.markobject:
                    stack.append(_MARK)
                elif made is pickletools.pytuple:
                    depth = 1 + max((depth for depth in taken if depth != _MARK), default=0)
                    stack.append(depth)
                    yield depth
                else:
                    stack.append(0)


def _take(stack: list[int], opcode: pickletools.OpcodeInfo) -> list[int]:
    """What an operation takes off the stack; where it takes a slice, all down to the mark."""
    taken: list[int] = []
    before = opcode.stack_before
    if pickletools.stackslice in before or (before and before[-1] is pickletools.markobject):
        while stack and stack[-1] != _MARK:
            taken.append(stack.pop())
        if stack:
            stack.pop()
        fixed = before.index(pickletools.markobject)
    else:
        fixed = len(before)
    split = max(len(stack) - fixed, 0)
    taken += stack[split:]
    del stack[split:]
    return taken
