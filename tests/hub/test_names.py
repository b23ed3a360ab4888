from __future__ import annotations

import pytest

from edgerun.errors import NotFoundError, UsageError
from edgerun.hub.names import RepoName, candidates, choose, parse_repo_name, quant_name

FILES = [
    "README.md",
    "tiny-Q4_K_M.gguf",
    "tiny-Q8_0.gguf",
    "tiny-UD-Q4_K_M.gguf",
    "mmproj-tiny-F16.gguf",
    "big/tiny-BF16-00001-of-00002.gguf",
    "big/tiny-BF16-00002-of-00002.gguf",
    "half-Q6_K-00001-of-00002.gguf",
]


@pytest.mark.parametrize(
    ("text", "repo", "wanted"),
    [
        ("org/repo", "org/repo", None),
        ("org/repo:Q4_K_M", "org/repo", "Q4_K_M"),
        ("hf.co/org/repo:Q4_K_M", "org/repo", "Q4_K_M"),
        ("https://huggingface.co/org/repo-GGUF/", "org/repo-GGUF", None),
        ("hf://org/repo.v2:file-Q8_0.gguf", "org/repo.v2", "file-Q8_0.gguf"),
    ],
)
def test_names_of_repositories(text: str, repo: str, wanted: str | None) -> None:
    assert parse_repo_name(text) == RepoName(repo, wanted)


@pytest.mark.parametrize("text", ["", "alias", "a/b/c", "org/repo:", "../repo", "org/", "https://example.org/a/b"])
def test_what_is_no_repository(text: str) -> None:
    assert parse_repo_name(text) is None


@pytest.mark.parametrize(
    ("file", "quant"),
    [
        ("model-Q4_K_M.gguf", "Q4_K_M"),
        ("model.q8_0.gguf", "Q8_0"),
        ("model-IQ4_XS-00001-of-00003.gguf", "IQ4_XS"),
        ("sub/model-bf16.gguf", "BF16"),
        ("Q4_0.gguf", "Q4_0"),
        ("Bonsai-8B-Q1_0.gguf", "Q1_0"),
        ("Ternary-Bonsai-8B-Q2_0.gguf", "Q2_0"),
        ("model-UD-IQ2_XXS.gguf", "IQ2_XXS"),
        ("model-UD-IQ1_M.gguf", "IQ1_M"),
        ("model-NVFP4.gguf", "NVFP4"),
        ("model-MXFP4_MOE.gguf", "MXFP4_MOE"),
        ("bitnet-TQ1_0.gguf", "TQ1_0"),
        ("model.gguf", None),
    ],
)
def test_quantisation_in_a_file_name(file: str, quant: str | None) -> None:
    assert quant_name(file) == quant


@pytest.mark.parametrize(
    ("wanted", "files"),
    [
        ("Q4_K_M", ("tiny-Q4_K_M.gguf",)),
        ("q8_0", ("tiny-Q8_0.gguf",)),
        ("UD-Q4_K_M", ("tiny-UD-Q4_K_M.gguf",)),
        ("BF16", ("big/tiny-BF16-00001-of-00002.gguf", "big/tiny-BF16-00002-of-00002.gguf")),
        ("tiny-Q8_0.gguf", ("tiny-Q8_0.gguf",)),
        (None, ("tiny-Q4_K_M.gguf",)),
    ],
)
def test_choice_in_a_repository(wanted: str | None, files: tuple[str, ...]) -> None:
    assert choose(candidates(FILES), RepoName("org/repo", wanted)).files == files


def test_a_split_that_is_not_whole_is_no_candidate() -> None:
    with pytest.raises(NotFoundError, match=r"has no Q6_K; there are BF16, Q4_K_M, Q8_0"):
        choose(candidates(FILES), RepoName("org/repo", "Q6_K"))


def test_several_models_of_one_quantisation() -> None:
    found = candidates(["a-Q4_0.gguf", "b-Q4_0.gguf"])
    with pytest.raises(UsageError, match=r"org/repo:a-Q4_0\.gguf, org/repo:b-Q4_0\.gguf"):
        choose(found, RepoName("org/repo", "Q4_0"))
    with pytest.raises(UsageError, match="several models"):
        choose(found, RepoName("org/repo"))


def test_a_repository_without_models() -> None:
    with pytest.raises(NotFoundError, match="no GGUF"):
        choose(candidates(["model.safetensors"]), RepoName("org/repo"))
