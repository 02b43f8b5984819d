"""Triton's own client, in the environment that has it: `CLIENT_PYTHON` runs this file.

Reads lists of requests from standard input, one list a line, sends those of a list at the same time, and
writes the list of their answers. Arrays are uint8 or float32, as base64.
"""

import base64
import json
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from typing import Any

import numpy as np


def answer(request: dict[str, Any]) -> dict[str, Any]:
    """Send one request and tell what came back: outputs, or the error's code and words."""
    library = import_module(f"tritonclient.{request['protocol']}")
    client = library.InferenceServerClient(request["url"])
    inputs = []
    for name, (shape, data) in request["inputs"].items():
        given = library.InferInput(name, shape, "UINT8")
        given.set_data_from_numpy(np.frombuffer(base64.b64decode(data), np.uint8).reshape(shape))
        inputs.append(given)
    asked = {
        "outputs": [library.InferRequestedOutput(name) for name in request["outputs"]] or None,
        "parameters": request["parameters"] or None,
        "timeout": request["timeout"],
    }
    time.sleep(request["after"])
    if request["gone_after"] is not None:
        call = client.async_infer(request["model"], inputs, lambda result, error: None, **asked)
        time.sleep(request["gone_after"])
        call.cancel()
        return {}
    try:
        return {"outputs": dict(outputs_of(client.infer(request["model"], inputs, **asked)))}
    except Exception as error:
        status = error.status() if hasattr(error, "status") else type(error).__name__
        return {"status": str(status), "message": str(error)}


def outputs_of(result: Any) -> Any:  # noqa: ANN401 - the client's two kinds of results
    """Names of the outputs with shape, type and data."""
    response = result.get_response()
    outputs = response["outputs"] if isinstance(response, dict) else response.outputs
    for output in outputs:
        name = output["name"] if isinstance(output, dict) else output.name
        array = result.as_numpy(name)
        yield name, (array.shape, str(array.dtype), base64.b64encode(array.tobytes()).decode())


def main() -> None:
    """Answer lists until the input ends."""
    with ThreadPoolExecutor(64) as pool:
        for line in sys.stdin:
            sys.stdout.write(json.dumps(list(pool.map(answer, json.loads(line)))) + "\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
