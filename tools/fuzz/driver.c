/* Runs a fuzz target: once for libFuzzer, or on its own where there is no clang.
 *
 *     fuzz_jpeg SECONDS RUNS FILE...
 *
 * First runs every file, then mutated ones, until so many seconds are over or so many were run (0:
 * no such limit; both 0: no mutated ones).  Inputs that reach new code are kept and mutated further,
 * if the target is compiled with -fsanitize-coverage=trace-pc.  Otherwise the same inputs are run
 * each time, and the last line is the same on every processor.
 *
 * The input that runs is in the file `last-input` of the working directory.
 */
#include "fuzz.h"

#ifdef WITH_LIBFUZZER
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    run_input(data, size);
    return 0;
}
#else
#include <fcntl.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

enum { MAX_BYTES = 1 << 19, MAX_INPUTS = 1 << 14, MAX_SECONDS = 20, NUM_EDGES = 1 << 16 };

typedef struct {
    uint8_t *data;
    size_t size;
} Input;

static Input inputs[MAX_INPUTS];
static size_t num_inputs;
static uint8_t *shown; /* last-input */
static int shown_file;
static uint8_t edges[NUM_EDGES];
static uintptr_t last_place;
static size_t num_edges;

/* Called by the code under test at each of its branches. */
void __sanitizer_cov_trace_pc(void) {
    uintptr_t place = (uintptr_t)__builtin_return_address(0);
    uintptr_t edge = (place ^ last_place >> 1) % NUM_EDGES;
    last_place = place;
    if (!edges[edge]) edges[edge] = 1, num_edges++;
}

static void add_input(const uint8_t *data, size_t size) {
    if (num_inputs < MAX_INPUTS) inputs[num_inputs++] = (Input){copy_of(data, size), size};
}

static uint64_t run_shown(const uint8_t *data, size_t size) {
    REQUIRE(ftruncate(shown_file, (off_t)size) == 0);
    if (size) memcpy(shown, data, size);
    alarm(MAX_SECONDS);
    last_place = 0;
    return run_input(data, size);
}

static void read_input(const char *path) {
    static uint8_t data[MAX_BYTES];
    FILE *file = fopen(path, "rb");
    REQUIRE(file);
    size_t size = fread(data, 1, sizeof data, file);
    fclose(file);
    const char *name = strrchr(path, '/');
    printf("%016llx %s\n", (unsigned long long)run_shown(data, size), name ? name + 1 : path);
    add_input(data, size);
}

/* Exchange data[at:at + removed] for *size* bytes; return the new size. */
static size_t exchange(uint8_t *data, size_t total, size_t at, size_t removed, const uint8_t *bytes,
                       size_t size) {
    if (total - removed + size > MAX_BYTES) return total;
    memmove(data + at + size, data + at + removed, total - at - removed);
    memmove(data + at, bytes, size);
    return total - removed + size;
}

/* Change the input somewhere; headers more often than the rest. */
static size_t mutate(uint8_t *data, size_t total, uint64_t *random) {
    static const uint8_t markers[] = {0x00, 0x01, 0xC0, 0xC1, 0xC2, 0xC4, 0xD0, 0xD3, 0xD8, 0xD9,
                                      0xDA, 0xDB, 0xDC, 0xDD, 0xE0, 0xE2, 0xED, 0xEE, 0xFE, 0xFF};
    static const uint8_t values[] = {0, 1, 2, 7, 8, 15, 16, 17, 63, 64, 127, 128, 254, 255};
    if (!total) return exchange(data, 0, 0, 0, values, sizeof values);
    size_t end = below(random, 2) && total > 700 ? 700 : total, at = below(random, end), left = total - at;
    size_t some = 1 + below(random, left < 40 ? left : below(random, 8) ? 12 : left);
    uint8_t marker[] = {0xFF, markers[below(random, sizeof markers)]};
    const Input *other = &inputs[below(random, num_inputs)];
    switch (below(random, 12)) {
    case 0: case 1: data[at] = (uint8_t)next_random(random); break;
    case 2: data[at] ^= (uint8_t)(1 << below(random, 8)); break;
    case 3: data[at] = (uint8_t)(data[at] + below(random, 2) * 2 - 1); break;
    case 4: data[at] = values[below(random, sizeof values)]; break;
    case 5: return exchange(data, total, at, some < left ? some : left, data, 0);
    case 6: return exchange(data, total, at, 0, marker, 2);
    case 7: if (left >= 2) memcpy(data + at, marker, 2); break;
    case 8: { /* repeat a part, further on */
        uint8_t part[64];
        size_t size = some < left ? some : left, to = at + below(random, left);
        if (size > sizeof part) size = sizeof part;
        memcpy(part, data + at, size);
        return exchange(data, total, to, 0, part, size);
    }
    case 9: memset(data + at, below(random, 2) ? 0xFF : 0, some < left ? some : left); break;
    case 10: { /* the rest of another input */
        size_t from = other->size ? below(random, other->size) : 0;
        return exchange(data, total, at, left, other->data + from, other->size - from);
    }
    default: if (!below(random, 6)) return at; /* cut off */
    }
    return total;
}

static double now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec + 1e-9 * (double)time.tv_nsec;
}

int main(int argc, char **argv) {
    static uint8_t data[MAX_BYTES];
    REQUIRE(argc > 3);
    double seconds = atof(argv[1]), start = now();
    long long max_runs = atoll(argv[2]), runs = 0;
    uint64_t random = 1, digest = FIRST_DIGEST;
    shown_file = open("last-input", O_RDWR | O_CREAT | O_TRUNC, 0666);
    REQUIRE(shown_file >= 0 && ftruncate(shown_file, MAX_BYTES) == 0);
    shown = mmap(NULL, MAX_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, shown_file, 0);
    REQUIRE(shown != MAP_FAILED);
    for (int i = 3; i < argc; i++) read_input(argv[i]);
    for (; seconds > 0 || max_runs; runs++) {
        if ((max_runs && runs == max_runs) || (seconds > 0 && now() - start > seconds)) break;
        const Input *input = &inputs[below(&random, num_inputs)];
        size_t size = input->size, before = num_edges;
        memcpy(data, input->data, size);
        for (size_t i = 1 + below(&random, 4); i; i--) size = mutate(data, size, &random);
        uint64_t result = run_shown(data, size);
        digest = digest_of(digest, &result, sizeof result);
        if (num_edges > before) add_input(data, size);
    }
    printf("runs %lld | inputs %zu | digest %016llx\n", runs, num_inputs, (unsigned long long)digest);
    return 0;
}
#endif
