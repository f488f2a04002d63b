"""ONNX Runtime as on a GPU: the real one, on the CPU, reading the stand-in's memory of a GPU."""

import ctypes
from types import ModuleType, SimpleNamespace

import numpy as np
import onnxruntime

CUDA, TENSORRT, CPU = "CUDAExecutionProvider", "TensorrtExecutionProvider", "CPUExecutionProvider"


class FakeOrt:
    """The module, as built for GPUs.

    Attributes:
        providers: Those it has.
        gives: Provider that a session really gets; "" for the one asked for.
        placed: Operator to the provider that its nodes get; the others get the first.
        sessions: Arguments of every session made.
        runs: CUDA graph of every run, "-1" for none.
        fails: What the next run says instead of running.
        preloaded: How often CUDA's libraries were looked for.
    """

    def __init__(self, cuda):
        self.cuda = cuda
        self.providers = [TENSORRT, CUDA, CPU]
        self.gives, self.placed, self.fails = "", {}, ""
        self.sessions, self.runs, self.preloaded = [], [], 0

    def module(self) -> ModuleType:
        """``onnxruntime``, as far as we use it."""
        outer = self

        class Binding:
            def __init__(self, session):
                self.binding = onnxruntime.IOBinding(session)
                self.places = {}

            def bind_input(self, name, device, index, dtype, shape, address):
                assert device == "cuda"
                assert any(
                    start <= address < start + len(block)
                    for start, block in outer.cuda.memory.items()
                )
                self.places[name] = address
                self.binding.bind_input(name, "cpu", index, dtype, shape, address)

            def bind_output(self, name, device, index, dtype=None, shape=None, address=None):
                assert device == "cuda"
                self.binding.bind_output(name, "cpu", 0, dtype, shape, address)

            def get_outputs(self):
                found = []
                for value in self.binding.get_outputs():
                    array = np.ascontiguousarray(value.numpy())
                    _, address = outer.cuda.cudaMalloc(array.nbytes)
                    ctypes.memmove(address, array.ctypes.data, array.nbytes)
                    found.append(
                        SimpleNamespace(
                            shape=lambda a=array: list(a.shape), data_ptr=lambda a=address: a
                        )
                    )
                return found

        class InferenceSession:
            def __init__(self, path, settings, *, providers, enable_fallback):
                assert enable_fallback == 0
                outer.sessions.append(dict(providers))
                self.asked = providers
                self.real = onnxruntime.InferenceSession(path, settings, providers=[CPU])
                self.graphs = {}

            def get_providers(self):
                return [outer.gives or self.asked[0][0]]

            def get_provider_options(self):
                return {name: dict(options) for name, options in self.asked}

            def get_provider_graph_assignment_info(self):
                found = []
                for part in self.real.get_provider_graph_assignment_info():
                    for node in part.get_nodes():
                        name = outer.placed.get(node.op_type, self.asked[0][0])
                        nodes = [node]
                        found.append(SimpleNamespace(ep_name=name, get_nodes=lambda n=nodes: n))
                return found

            def io_binding(self):
                return Binding(self.real)

            def run_with_iobinding(self, binding, options):
                graph = options.get_run_config_entry("gpu_graph_id")
                if graph != "-1":  # a graph reads the addresses that it was recorded with
                    assert self.graphs.setdefault(graph, binding.places) == binding.places
                outer.runs.append(graph)
                if outer.fails:
                    raise RuntimeError(outer.fails)
                stream = int(self.asked[0][1]["user_compute_stream"])
                outer.cuda.cudaStreamSynchronize(stream)  # it runs after what is in the stream
                self.real.run_with_iobinding(binding.binding, options)

        def preload_dlls():
            outer.preloaded += 1

        module = ModuleType("onnxruntime")
        vars(module).update(
            __version__=onnxruntime.__version__,
            SessionOptions=onnxruntime.SessionOptions,
            RunOptions=onnxruntime.RunOptions,
            InferenceSession=InferenceSession,
            get_available_providers=lambda: list(outer.providers),
            preload_dlls=preload_dlls,
        )
        return module
