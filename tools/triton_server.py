"""Run the real NVIDIA Triton Inference Server on this machine, without Docker and without a GPU.

    python tools/triton_server.py REPOSITORY

The first run sets it up in `.triton/` (120 MiB to download): the server of PyPI's nvidia-pytriton, and
Triton's own client in an environment apart, since it needs an older protobuf. Models run in the Python that
runs this script, 3.11 to 3.13. In production the server is NVIDIA's container, see docs/triton.md.
"""

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import click

SERVER, CLIENT = "nvidia-pytriton==0.7.0", "tritonclient[grpc,http]==2.73.0"
FOLDER = Path(__file__).resolve().parents[1] / ".triton"
"""An environment with the server's wheel and its client."""
CLIENT_PYTHON = FOLDER / "bin" / "python"
"""The interpreter that has `tritonclient`."""
_PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"
_PACKAGES = FOLDER / "lib" / f"python{_PYTHON}" / "site-packages"
_TREE = _PACKAGES / "pytriton" / "tritonserver"


def install() -> None:
    """Set it up, unless that is done already. Raises `subprocess.CalledProcessError` or `OSError`."""
    done = FOLDER / ".installed"
    if done.is_file() and done.read_text() == f"{SERVER} {CLIENT}":
        return
    venv.create(FOLDER, clear=True, with_pip=True)
    pip = [str(CLIENT_PYTHON), "-m", "pip", "install", "--quiet"]
    subprocess.run([*pip, CLIENT], check=True)
    subprocess.run([*pip, "--no-deps", SERVER], check=True)  # of it the server alone is wanted
    backend = FOLDER / "backends" / "python"
    shutil.copytree(_TREE / "backends" / "python", backend)
    shutil.copy(_TREE / "python_backend_stubs" / _PYTHON / "triton_python_backend_stub", backend)
    done.write_text(f"{SERVER} {CLIENT}")


def server_command(repository: Path, *options: str) -> list[str]:
    """What starts it, on this machine alone unless `options`, which are tritonserver's, say otherwise."""
    given = {option.partition("=")[0] for option in options}
    addresses = (f"--{which}-address" for which in ("http", "grpc", "metrics"))
    return [
        str(_TREE / "bin" / "tritonserver"),
        f"--model-repository={repository}",
        f"--backend-directory={FOLDER / 'backends'}",
        *(f"{option}=127.0.0.1" for option in addresses if option not in given),
        *options,
    ]


def server_environment() -> dict[str, str]:
    """In which it must be started: models run in the Python that runs this script."""
    libraries = [str(_PACKAGES / "nvidia_pytriton.libs"), sysconfig.get_config_var("LIBDIR")]
    path = [str(Path(sys.executable).parent), os.environ.get("PATH", "")]
    return os.environ | {"LD_LIBRARY_PATH": os.pathsep.join(libraries), "PATH": os.pathsep.join(path)}


@click.command(help=(__doc__ or "").partition("\n\n")[0])
@click.argument("repository", type=click.Path(path_type=Path, exists=True))
@click.argument("options", nargs=-1, type=click.UNPROCESSED)
def main(repository: Path, options: tuple[str, ...]) -> None:
    """Set the server up where it is missing, and become it; OPTIONS are tritonserver's, after `--`.

    It listens on this machine alone, unless they say otherwise (`--http-address=0.0.0.0`).
    """
    install()
    command = server_command(repository, *options)
    os.execve(command[0], command, server_environment())


if __name__ == "__main__":
    main()
