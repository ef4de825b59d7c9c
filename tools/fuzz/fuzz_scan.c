/* The file scanner on arbitrary bytes: read from memory, and from files of a folder.
 *
 * Both have to say the same, and every way to take bytes into a digest gives the same digest. */
#include "../../vit21k/_native/scan.c"

#include "fuzz.h"

enum { FILES = 2 };

static char folder_path[64];

static void remove_folder(void) {
    char path[96];
    snprintf(path, sizeof path, "%s/a.jpg", folder_path);
    unlink(path);
    rmdir(folder_path);
}

static int opened_folder(void) {
    static int folder = -1;
    if (folder >= 0) return folder;
    snprintf(folder_path, sizeof folder_path, "%s/fuzz-scan-XXXXXX", access("/dev/shm", W_OK) ? "/tmp" : "/dev/shm");
    REQUIRE(mkdtemp(folder_path));
    atexit(remove_folder);
    folder = open(folder_path, O_RDONLY | O_DIRECTORY);
    REQUIRE(folder >= 0);
    return folder;
}

static void check_digests(const uint8_t *data, size_t size, const uint8_t *expected) {
    for (int number = 0; number < 3; number++) {
        uint8_t digest[16];
        digest_bytes(data, (int64_t)size, number, digest);
        REQUIRE(memcmp(digest, expected, 16) == 0);
    }
}

static void write_file(int folder, const uint8_t *data, size_t size) {
    const int file = openat(folder, "a.jpg", O_WRONLY | O_CREAT | O_TRUNC, 0666);
    REQUIRE(file >= 0 && write(file, data, size) == (ssize_t)size);
    close(file);
}

/* Read the file, and one that is not there.  described: its row, from memory; is_done: there is one. */
static void check_files_of(int folder, const uint8_t *data, size_t size, const Row *described, int is_done,
                           uint64_t *random) {
    static const char names[] = "a.jpg\0gone.jpeg";
    const int only_ends = (int)below(random, 2), is_large = size > 2 * PROBE_BYTES;
    const int64_t capacity = 2 * PROBE_BYTES + (int64_t)below(random, 2 * size + 1);
    uint8_t *packed = copy_of(names, sizeof names), *buffer = allocated((size_t)capacity);
    uint8_t states[FILES] = {TO_DO, TO_DO}, again[FILES] = {TO_DO, TO_DO};
    Row *rows = allocated(FILES * sizeof *rows);
    write_file(folder, data, size);
    ask_for_files(folder, (char *)packed, FILES, O_RDONLY, only_ends, states);
    read_files(folder, (char *)packed, FILES, O_RDONLY, only_ends, buffer, capacity, rows, states);
    REQUIRE(states[1] == TO_DO);
    const int is_probed = only_ends && is_large && memcmp(data, "\xff\xd8\xff", 3) == 0;
    REQUIRE((states[0] == DONE) == (is_probed || (size > 0 && is_done)));
    if (is_probed) {
        REQUIRE(!(rows[0].flags & HAS_DIGEST));
    } else {
        if (states[0] == DONE) {
            REQUIRE(memcmp(rows[0].content_digest, described->content_digest, 16) == 0);
            REQUIRE(rows[0].width == described->width && rows[0].height == described->height);
            REQUIRE(rows[0].components == described->components && rows[0].format == described->format);
            check_digests(data, size, rows[0].digest);
        }
    }
    if (states[0] == DONE) {
        check_files(folder, (char *)packed, 1, O_RDONLY, 1, rows, again);
        REQUIRE(again[0] == DONE);
    }
    free(packed), free(buffer), free(rows);
}

static void check_listing(void) {
    char names[7];
    REQUIRE(list_files(folder_path, names, 6) == 6 || list_files(folder_path, names, 7) == 6);
    REQUIRE(list_files(folder_path, names, 5) == -1);
}

uint64_t run_input(const uint8_t *data, size_t size) {
    static unsigned num_runs;
    uint64_t digest = digest_of(FIRST_DIGEST, data, size), random = digest;
    const size_t repeats = 1 + below(&random, 8), total = size * repeats;
    uint8_t *whole = allocated(total), *first = copy_of(data, size);
    for (size_t i = 0; i < repeats; i++) memcpy(whole + i * size, first, size);
    uint8_t *spoilt = copy_of(whole, total), xxh3[16];
    Row row;
    const int is_done = describe_bytes(spoilt, (int64_t)total, &row);
    digest_bytes(whole, (int64_t)total, -1, xxh3);
    check_digests(whole, total, xxh3);
    if (num_runs++ % 4 == 0) {
        check_files_of(opened_folder(), whole, total, &row, is_done, &random);
        if (num_runs == 1) check_listing();
    }
    digest = digest_of(digest, xxh3, 16);
    digest = digest_of(digest, &is_done, sizeof is_done);
    if (is_done) digest = digest_of(digest, &row, sizeof row);
    free(whole), free(first), free(spoilt);
    return digest;
}
