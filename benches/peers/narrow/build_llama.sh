#!/bin/bash
# Native llama.cpp from llama-cpp-python's sdist: build_llama.sh SRC(llama.cpp) BUILD [more cmake flags]
set -e  # TARGETS="llama llama-bench llama-batched-bench" builds its own tools too
S=$1 B=$2; shift 2
nice -n 15 cmake -S "$S" -B "$B" -G Ninja -DCMAKE_BUILD_TYPE=Release -DBUILD_SHARED_LIBS=OFF -DGGML_NATIVE=ON -DGGML_OPENMP=ON \
  -DGGML_CCACHE=OFF -DLLAMA_CURL=OFF -DLLAMA_OPENSSL=OFF -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_BUILD_SERVER=OFF \
  -DLLAMA_BUILD_APP=OFF -DLLAMA_BUILD_UI=OFF -DLLAMA_BUILD_TOOLS=ON "$@"
nice -n 15 cmake --build "$B" -j 2 --target ${TARGETS:-llama}
