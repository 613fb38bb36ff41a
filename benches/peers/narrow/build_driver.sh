#!/bin/bash
# llama_driver beside a static native build: build_driver.sh SRC BUILD OUT
set -e
S=$1 B=$2
nice -n 15 g++ -O2 -std=c++17 "$(dirname "$0")/llama_driver.cpp" -I$S/include -I$S/ggml/include -o $3 -Wl,--start-group $(find $B/src $B/ggml -name '*.a') -Wl,--end-group -fopenmp -lpthread -ldl -lm
