"""ERNIE 4.5, and the part of PaddleOCR-VL that reads and writes text."""

from edgerun.models.families.family import Family

FAMILIES = {
    "ernie4_5": Family(rope="norm"),
    "ernie4_5-moe": Family(rope="norm"),
    "paddleocr": Family(rope="neox", sections="blocks"),
}
