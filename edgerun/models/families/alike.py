"""Models of few files that are built like others: Baichuan 7B, XVERSE, Maincoder, openPangu, Spark 2.5."""

from edgerun.models.families.family import LOCAL_BASE, Family

FAMILIES = {
    "baichuan": Family(rope="norm", of_layers=32),
    "xverse": Family(rope="norm"),
    "maincoder": Family(rope="norm", qk_norm="head", qk_norm_after=True),
    "pangu-embedded": Family(rope="neox"),
    "spark2_5": Family(
        rope="neox",
        activation="gelu",
        output_gate="sigmoid",
        window_pattern=1,  # the file says which layers have one
        says=LOCAL_BASE,
    ),
}
