// llama.cpp's speeds and greedy tokens, one JSON line: what narrow.py asks of each peer.
//
//   llama_driver MODEL.gguf [--threads 2] [--kv f32|f16|bf16|q8_0] [--fa off|on|auto] [--prefill 512] [--new 64] [--depth 1024]
//                [--many 8] [--repeat 1] [--what prefill,decode,deep,many] [--gate PROMPTS --gate-new 24] [--backends DIR]
//
// PROMPTS: a prompt a line, token ids with spaces between. Decoding takes the likeliest token, found inside the timed loop.
// --backends: where a build with dynamic backends has libggml-cpu-*.so.
#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <map>
#include <random>
#include <sstream>
#include <string>
#include <vector>

#include "ggml-backend.h"
#include "llama.h"

using Ids = std::vector<llama_token>;

static double now() {
    using namespace std::chrono;
    return duration<double>(steady_clock::now().time_since_epoch()).count();
}

static void check(bool ok, const char *what) {
    if (!ok) {
        fprintf(stderr, "failed: %s\n", what);
        exit(1);
    }
}

static double median(std::vector<double> x) {
    std::sort(x.begin(), x.end());
    return x[x.size() / 2];
}

static llama_model *model;
static int vocab, threads = 2;
static ggml_type kv = GGML_TYPE_F16;
static llama_flash_attn_type fa = LLAMA_FLASH_ATTN_TYPE_AUTO;

static Ids prompt_of(int n, unsigned seed) {
    std::mt19937 random(seed);
    Ids ids(n);
    for (auto &id : ids) id = 300 + random() % (vocab - 300);
    return ids;
}

struct Context {
    llama_context *c;
    Context(int tokens, int sequences) {
        auto p = llama_context_default_params();
        p.n_ctx = tokens * sequences;
        p.n_batch = 2048;
        p.n_ubatch = 512;
        p.n_seq_max = sequences;
        p.n_threads = p.n_threads_batch = threads;
        p.type_k = p.type_v = kv;
        p.flash_attn_type = fa;
        p.no_perf = true;
        p.kv_unified = false;
        c = llama_init_from_model(model, p);
        check(c, "context");
    }
    ~Context() { llama_free(c); }
    // Tokens of sequence 0 that follow those it has; logits of the last.
    const float *read(Ids ids) {
        check(llama_decode(c, llama_batch_get_one(ids.data(), (int)ids.size())) == 0, "decode");
        return llama_get_logits_ith(c, -1);
    }
    void cut(int length) { check(llama_memory_seq_rm(llama_get_memory(c), -1, length, -1), "cut"); }
};

static llama_token likeliest(const float *logits) { return (llama_token)(std::max_element(logits, logits + vocab) - logits); }

static double prefill(int n, int repeat) {
    Context c(n, 1);
    std::vector<double> speeds;
    for (int i = 0; i <= repeat; i++) {
        c.cut(0);
        auto ids = prompt_of(i ? n : std::min(n, 64), 3 + i);  // the first to warm up
        double start = now();
        likeliest(c.read(ids));
        if (i) speeds.push_back(n / (now() - start));
    }
    return median(speeds);
}

static double decode(int depth, int fresh, int repeat) {
    depth = std::max(depth, 1);
    Context c(depth + fresh, 1);
    auto first = likeliest(c.read(prompt_of(depth, 2)));
    std::vector<double> speeds;
    for (int i = 0; i <= repeat; i++) {
        c.cut(depth);
        auto next = first;
        int n = i ? fresh : std::min(4, fresh);  // the first to warm up
        double start = now();
        for (int j = 0; j < n; j++) next = likeliest(c.read({next}));
        if (i) speeds.push_back(n / (now() - start));
    }
    return median(speeds);
}

static double many(int sequences, int fresh, int repeat) {
    Context c(fresh + 8, sequences);
    std::vector<double> speeds;
    auto batch = llama_batch_init(sequences, 0, 1);
    for (int i = 0; i <= repeat; i++) {
        llama_memory_clear(llama_get_memory(c.c), false);
        Ids next = prompt_of(sequences, 10);
        int n = i ? fresh : std::min(4, fresh);
        double start = now();
        for (int j = 0; j <= n; j++) {
            if (j == 1) start = now();  // the prompts' single tokens do not count
            batch.n_tokens = sequences;
            for (int s = 0; s < sequences; s++) {
                batch.token[s] = next[s];
                batch.pos[s] = j;
                batch.n_seq_id[s] = 1;
                batch.seq_id[s][0] = s;
                batch.logits[s] = 1;
            }
            check(llama_decode(c.c, batch) == 0, "decode many");
            for (int s = 0; s < sequences; s++) next[s] = likeliest(llama_get_logits_ith(c.c, s));
        }
        if (i) speeds.push_back(n * sequences / (now() - start));
    }
    llama_batch_free(batch);
    return median(speeds);
}

static void gate(const char *file, int fresh) {
    std::ifstream in(file);
    std::string line;
    bool comma = false;
    printf(", \"answers\": [");
    while (std::getline(in, line)) {
        std::istringstream words(line);
        Ids ids;
        for (int id; words >> id;) ids.push_back(id);
        Context c((int)ids.size() + fresh, 1);
        std::string tokens, logprobs;
        for (int j = 0; j < fresh; j++) {
            auto logits = c.read(ids);
            auto best = likeliest(logits);
            double sum = 0;
            for (int v = 0; v < vocab; v++) sum += std::exp((double)logits[v] - logits[best]);
            char text[64];
            snprintf(text, sizeof text, "%s%.9g", j ? ", " : "", -std::log(sum));
            logprobs += text;
            tokens += (j ? ", " : "") + std::to_string(best);
            ids = {best};
        }
        printf("%s{\"tokens\": [%s], \"logprobs\": [%s]}", comma ? ", " : "", tokens.c_str(), logprobs.c_str());
        comma = true;
    }
    printf("]");
}

int main(int argc, char **argv) {
    std::map<std::string, std::string> a = {{"--threads", "2"}, {"--kv", "f16"},   {"--fa", "auto"},    {"--prefill", "512"},
                                            {"--new", "64"},    {"--depth", "1024"}, {"--many", "8"},   {"--repeat", "1"},
                                            {"--what", ""},     {"--gate", ""},    {"--gate-new", "24"}, {"--backends", ""}};
    check(argc >= 2 && argc % 2 == 0, "usage: MODEL.gguf [--name value]");
    for (int i = 2; i + 1 < argc; i += 2) {
        check(a.count(argv[i]), argv[i]);
        a[argv[i]] = argv[i + 1];
    }
    auto number = [&](const char *name) { return atoi(a[name].c_str()); };
    threads = number("--threads");
    std::map<std::string, ggml_type> types = {
        {"f32", GGML_TYPE_F32}, {"f16", GGML_TYPE_F16}, {"bf16", GGML_TYPE_BF16}, {"q8_0", GGML_TYPE_Q8_0}};
    check(types.count(a["--kv"]), "--kv");
    kv = types[a["--kv"]];
    fa = a["--fa"] == "on"    ? LLAMA_FLASH_ATTN_TYPE_ENABLED
         : a["--fa"] == "off" ? LLAMA_FLASH_ATTN_TYPE_DISABLED
                              : LLAMA_FLASH_ATTN_TYPE_AUTO;

    llama_log_set([](ggml_log_level level, const char *text, void *) { if (level >= GGML_LOG_LEVEL_ERROR || getenv("VERBOSE")) fputs(text, stderr); }, nullptr);
    if (!a["--backends"].empty()) ggml_backend_load_all_from_path(a["--backends"].c_str());
    llama_backend_init();
    double start = now();
    auto p = llama_model_default_params();
    p.n_gpu_layers = 0;
    model = llama_model_load_from_file(argv[1], p);
    check(model, "model");
    vocab = llama_vocab_n_tokens(llama_model_get_vocab(model));
    double loaded = now() - start;

    printf("{\"loaded_s\": %.3f, \"threads\": %d, \"kv\": \"%s\", \"fa\": \"%s\"", loaded, threads, a["--kv"].c_str(), a["--fa"].c_str());
    std::istringstream what(a["--what"]);
    for (std::string w; std::getline(what, w, ',');) {
        double speed = w == "prefill" ? prefill(number("--prefill"), number("--repeat"))
                       : w == "decode" ? decode(0, number("--new"), number("--repeat"))
                       : w == "deep"   ? decode(number("--depth"), number("--new"), number("--repeat"))
                       : w == "many"   ? many(number("--many"), number("--new"), number("--repeat"))
                                       : (check(false, "--what"), 0.0);
        printf(", \"%s\": %.5g", w.c_str(), speed);
    }
    if (!a["--gate"].empty()) gate(a["--gate"].c_str(), number("--gate-new"));
    std::string info = llama_print_system_info();
    while (!info.empty() && info.back() <= ' ') info.pop_back();
    printf(", \"system\": \"%s\"}\n", info.c_str());
    fflush(stdout);
    _Exit(0);
}
