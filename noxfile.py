"""The suite's short profile on other Pythons and other versions of torch and jax: `make compat`.

Every session has an environment of its own, outside constraints.txt, which pins one version of each package. pip takes
the build of torch that its settings lead to; on Linux the package index serves the one for CUDA, of several gigabytes.
"""

import nox

nox.options.reuse_existing_virtualenvs = True
SHORT_PROFILE = ("tests/spec", "tests/kernel", "tests/layer", "tests/model")


@nox.session
@nox.parametrize(
    ("python", "torch", "jax"),
    [("3.12", "2.11.0", "0.11.2"), ("3.13", "2.13.0", "0.12.0")],
    ids=["python3.12-torch2.11-jax0.11", "python3.13-torch2.13-jax0.12"],
)
def compat(session: nox.Session, torch: str, jax: str) -> None:
    """Install the versions, then run the short profile and the main job.

    Args:
        session: Its positional arguments are the packages of models that tests read, installed without dependencies.
        torch: Version of torch.
        jax: Version of jax and jaxlib; flax is the newest that takes it.
    """
    session.install("-e", ".[all]", "transformers>=5.0", f"torch=={torch}", f"jax=={jax}", "--group", "dev")
    session.install("--no-deps", *session.posargs)
    session.run("pytest", "-n", "2", "--dist", "worksteal", "-q", *SHORT_PROFILE)
    session.run("gqa", "conform", "--synthetic")
