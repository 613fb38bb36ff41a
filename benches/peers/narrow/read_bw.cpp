// Bytes a second that THREADS threads read (sums of 1 GiB each thread's share, best of 5): read_bw [THREADS] [MIB]
#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <thread>
#include <vector>
int main(int argc, char **argv) {
    int threads = argc > 1 ? atoi(argv[1]) : 2;
    size_t words = (argc > 2 ? atoll(argv[2]) : 1024) << 17;  // of 8 bytes
    std::vector<uint64_t> data(words, 3), sums(threads);
    double best = 1e9;
    for (int i = 0; i < 5; i++) {
        auto start = std::chrono::steady_clock::now();
        std::vector<std::thread> all;
        for (int t = 0; t < threads; t++)
            all.emplace_back([&, t] {
                uint64_t s[8] = {};
                const uint64_t *p = data.data() + words / threads * t;
                for (size_t j = 0; j + 64 <= words / threads; j += 64)
                    for (int k = 0; k < 64; k++) s[k & 7] += p[j + k];
                for (auto x : s) sums[t] += x;
            });
        for (auto &t : all) t.join();
        best = std::min(best, std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
    }
    printf("%.4g\n", words * 8 / best);
    return sums[0] == 0;
}
