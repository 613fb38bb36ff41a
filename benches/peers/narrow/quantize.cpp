#include "llama.h"
#include <cstdio>
#include <cstring>
int main(int argc, char** argv) {
    auto p = llama_model_quantize_default_params();
    const char* t = argv[3];
    p.ftype = !strcmp(t, "q4_k_m") ? LLAMA_FTYPE_MOSTLY_Q4_K_M : !strcmp(t, "q5_k_m") ? LLAMA_FTYPE_MOSTLY_Q5_K_M : !strcmp(t, "q6_k") ? LLAMA_FTYPE_MOSTLY_Q6_K : !strcmp(t, "q8_0") ? LLAMA_FTYPE_MOSTLY_Q8_0 : LLAMA_FTYPE_MOSTLY_Q4_0;
    p.nthread = 2;
    return llama_model_quantize(argv[1], argv[2], &p);
}
