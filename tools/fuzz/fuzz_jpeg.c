/* The JPEG code on arbitrary bytes: crops in every variant, and recoding with restart markers.
 *
 * The variants have to give the same pixels, whatever a decoder was used for before, and so has the
 * recoded file. */
#include "../../vit21k/_native/jpeg/recode.c"

#include "../../vit21k/_native/jpeg/header.h"
#include "fuzz.h"

typedef struct Decoder Decoder;

typedef struct { /* as in crop.c */
    int32_t box[4], resized[2], window[2], is_flipped, is_transposed;
} Crop;

typedef struct {
    Crop crop;
    int size, is_bicubic, precision;
} Wanted;

/* The functions of crop.c that are called from outside. */
typedef struct {
    Decoder *(*new_decoder)(void);
    void (*free_decoder)(Decoder *);
    void (*measure)(const uint8_t *const *, const int64_t *, int, int32_t *);
    void (*crop_all)(Decoder *, const uint8_t *const *, const int64_t *, const Crop *, int, int, int,
                     int, uint8_t *const *, int32_t *);
} Variant;

#define DECLARE(name)                                                                             \
    Decoder *new_decoder_##name(void);                                                            \
    void free_decoder_##name(Decoder *);                                                          \
    void measure_##name(const uint8_t *const *, const int64_t *, int, int32_t *);                 \
    void crop_all_##name(Decoder *, const uint8_t *const *, const int64_t *, const Crop *, int,   \
                         int, int, int, uint8_t *const *, int32_t *);
#define FUNCTIONS_OF(name) {new_decoder_##name, free_decoder_##name, measure_##name, crop_all_##name}
DECLARE(portable)
#if defined(__x86_64__)
DECLARE(avx2)
#endif
int has_avx2(void);

static const Variant variants[] = {
    FUNCTIONS_OF(portable),
#if defined(__x86_64__)
    FUNCTIONS_OF(avx2),
#endif
};

static int num_variants(void) { return has_avx2() ? 2 : 1; }

enum { MAX_SIZE = 48, MAX_SIDE = 400, LARGE = 1 << 16 };

/* ---- crops ---- */

/* A box of an image, not larger than MAX_SIDE, and how it is resized. */
static Wanted wanted_of(const int32_t *facts, uint64_t *random) {
    Wanted wanted = {.size = 1 + (int)below(random, MAX_SIZE), .is_bicubic = (int)below(random, 2)};
    Crop *crop = &wanted.crop;
    int is_pillow = (int)below(random, 2);
    wanted.precision = is_pillow ? 22 : 0;
    for (int i = 0; i < 2; i++) {
        int side = facts[i] ? facts[i] : 1, first = below(random, 3) ? (int)below(random, (size_t)side) : 0;
        int most = side - first < MAX_SIDE ? side - first : MAX_SIDE;
        crop->box[i] = first;
        crop->box[i + 2] = first + (below(random, 3) ? 1 + (int)below(random, (size_t)most) : most);
        crop->resized[i] = wanted.size + (is_pillow ? (int)below(random, 100) : 0);
        crop->window[i] = (int)below(random, (size_t)(crop->resized[i] - wanted.size + 1));
    }
    crop->is_flipped = (int)below(random, 2), crop->is_transposed = is_pillow && below(random, 2);
    if (below(random, 32) == 0) { /* nonsense */
        int32_t *number = &crop->box[0] + below(random, 8);
        *number = (int32_t)next_random(random);
    }
    return wanted;
}

/* Crop the last of *count* files, after the others; return whether that was done. */
static int cropped(const Variant *variant, const uint8_t *const *contents, const int64_t *sizes, int count,
                   const Wanted *wanted, uint8_t *out) {
    size_t num_bytes = 3 * (size_t)wanted->size * (size_t)wanted->size;
    Decoder *decoder = variant->new_decoder();
    Crop crops[3];
    uint8_t *outs[3];
    int32_t statuses[3];
    REQUIRE(decoder);
    for (int i = 0; i < count; i++) crops[i] = wanted->crop, outs[i] = allocated(num_bytes);
    variant->crop_all(decoder, contents, sizes, crops, count, wanted->size, wanted->is_bicubic,
                      wanted->precision, outs, statuses);
    if (statuses[count - 1] == DONE) memcpy(out, outs[count - 1], num_bytes);
    for (int i = 0; i < count; i++) free(outs[i]);
    variant->free_decoder(decoder);
    return statuses[count - 1] == DONE;
}

/* A file that is like *content*, but for a few bytes of its header. */
static uint8_t *relative_of(const uint8_t *content, size_t size, uint64_t *random) {
    uint8_t *other = copy_of(content, size);
    for (size_t i = below(random, 4) + 1; size && i; i--)
        other[below(random, size < 700 ? size : 700)] = (uint8_t)next_random(random);
    return other;
}

/* Crop in all ways; return whether that was done, with the pixels in *out*. */
static int crop_in_all_ways(const uint8_t *content, size_t size, const Wanted *wanted, uint64_t *random,
                            uint8_t *out) {
    uint8_t *other = relative_of(content, size, random), found[3 * MAX_SIZE * MAX_SIZE];
    const uint8_t *contents[] = {content, other, content};
    int64_t sizes[] = {(int64_t)size, (int64_t)size, (int64_t)size};
    size_t num_bytes = 3 * (size_t)wanted->size * (size_t)wanted->size;
    int is_done = cropped(variants, contents, sizes, 1, wanted, out), count = below(random, 4) ? 1 : 3;
    for (int i = count == 1; i < num_variants(); i++) {
        REQUIRE(cropped(&variants[i], contents, sizes, count, wanted, found) == is_done);
        if (is_done) REQUIRE(memcmp(found, out, num_bytes) == 0);
    }
    free(other);
    return is_done;
}

/* ---- recoding ---- */

static void take_tables(const Header *header, Table *tables) {
    memset(tables, 0, 2 * NUM_SLOTS * sizeof *tables);
    for (int slot = 0; slot < 2 * NUM_SLOTS; slot++) {
        const uint8_t *stored = header->huffman[slot];
        if (!stored) continue;
        int total = 0;
        for (int i = 0; i < 16; i++) total += stored[i];
        memcpy(tables[slot].counts + 1, stored, 16);
        memcpy(tables[slot].values, stored + 16, (size_t)total);
    }
}

static Layout layout_of(const Header *header, uint64_t *random) {
    int width = 8 * header->components[0].h, height = 8 * header->components[0].v;
    Layout layout = {.mcus_x = (header->width + width - 1) / width,
                     .mcus_y = (header->height + height - 1) / height,
                     .restart_in = header->restart_interval};
    for (layout.restart_out = 1 + (int)below(random, 16); layout.mcus_x % layout.restart_out;)
        layout.restart_out--;
    for (int c = 0; c < header->num_components; c++) {
        const Component *component = &header->components[c];
        for (int i = 0; i < component->h * component->v; i++)
            layout.component[layout.num_blocks++] = c;
        layout.dc_slot[c] = component->dc, layout.ac_slot[c] = component->ac;
    }
    return layout;
}

/* Another layout, as a file of another kind may have. */
static void change_layout(Layout *layout, uint64_t *random) {
    layout->num_blocks = 1 + (int)below(random, MAX_BLOCKS);
    for (int i = 0; i < MAX_BLOCKS; i++) layout->component[i] = (int)below(random, NUM_SLOTS);
    for (int i = 0; i < NUM_SLOTS; i++) {
        layout->dc_slot[i] = (int)below(random, NUM_SLOTS), layout->ac_slot[i] = (int)below(random, NUM_SLOTS);
    }
    layout->mcus_x = 1 + (int)below(random, 40), layout->mcus_y = 1 + (int)below(random, 40);
    layout->restart_out = 1 + (int)below(random, 50);
}

/* Where what `recode.py` gives to recoding ends: behind the last end marker; 0: there is none. */
static size_t end_of_scan(const uint8_t *content, size_t size, size_t start) {
    for (size_t end = size; end >= start + 2; end--)
        if (content[end - 2] == 0xFF && content[end - 1] == EOI) return end;
    return 0;
}

static uint8_t *append(uint8_t *at, const void *bytes, size_t size) {
    memcpy(at, bytes, size);
    return at + size;
}

/* The segments before the scan, with other tables and restart interval; return where they end. */
static uint8_t *write_head(uint8_t *at, const uint8_t *content, size_t scan_start, const Layout *layout,
                           const Table *tables) {
    uint8_t dri[] = {0xFF, DRI, 0, 4, (uint8_t)(layout->restart_out >> 8), (uint8_t)layout->restart_out};
    at = append(at, content, 2);
    for (size_t place = 2, after; place < scan_start; place = after) {
        after = place + 2 + (size_t)u16(content + place + 2);
        if (content[place + 1] == DHT || content[place + 1] == DRI) continue;
        for (int slot = 0; after == scan_start && slot < 2 * NUM_SLOTS; slot++) {
            int total = 0;
            for (int i = 1; i <= 16; i++) total += tables[slot].counts[i];
            uint8_t dht[] = {0xFF, DHT, (uint8_t)((19 + total) >> 8), (uint8_t)(19 + total),
                             (uint8_t)((slot / NUM_SLOTS) << 4 | slot % NUM_SLOTS)};
            if (!total) continue;
            at = append(append(at, dht, sizeof dht), tables[slot].counts + 1, 16);
            at = append(at, tables[slot].values, (size_t)total);
        }
        if (after == scan_start) at = append(at, dri, sizeof dri);
        at = append(at, content + place, after - place);
    }
    return at;
}

/* Require that the recoded file has the same pixels. */
static void check_recoded(const uint8_t *content, size_t scan_start, const Layout *layout, const Table *tables,
                          const uint8_t *scan, size_t num_bytes, const Wanted *wanted, const uint8_t *pixels) {
    static const uint8_t end[] = {0xFF, EOI};
    uint8_t *file = allocated(scan_start + 8 * 300 + 6 + num_bytes + 2), found[3 * MAX_SIZE * MAX_SIZE];
    uint8_t *at = write_head(file, content, scan_start, layout, tables);
    at = append(append(at, scan, num_bytes), end, 2);
    const uint8_t *contents[] = {file};
    int64_t size = at - file;
    REQUIRE(cropped(variants, contents, &size, 1, wanted, found));
    REQUIRE(memcmp(found, pixels, 3 * (size_t)wanted->size * (size_t)wanted->size) == 0);
    free(file);
}

/* pixels: of the crop, or NULL. */
static uint64_t recode_input(const uint8_t *content, size_t size, const Wanted *wanted, const uint8_t *pixels,
                             uint64_t *random) {
    Header header;
    if (read_header(&header, content, size)) return 0;
    size_t end = end_of_scan(content, size, header.scan_start), num_bytes = end - header.scan_start;
    Layout layout = layout_of(&header, random);
    int is_changed = below(random, 4) == 0, is_tight = below(random, 8) == 0;
    if (is_changed) change_layout(&layout, random);
    if (!end || (size_t)layout.mcus_x * (size_t)layout.mcus_y > 64 * (size - header.scan_start)) return 1;
    size_t num_restarts = (size_t)layout.mcus_x * (size_t)layout.mcus_y / (size_t)layout.restart_out;
    size_t capacity = 2 * num_bytes + 8 * num_restarts + 1024;
    if (is_tight) capacity = below(random, num_bytes + 9);
    uint8_t *scan = copy_of(content + header.scan_start, num_bytes), *out = allocated(capacity);
    Table *tables = allocated(2 * NUM_SLOTS * sizeof *tables);
    take_tables(&header, tables);
    long written = recode(scan, num_bytes, &layout, tables, out, capacity);
    REQUIRE(written <= (long)capacity && written >= -NO_SPACE);
    uint64_t digest = digest_of(FIRST_DIGEST, &written, sizeof written);
    if (written >= 0) {
        digest = digest_of(digest_of(digest, out, (size_t)written), tables, 2 * NUM_SLOTS * sizeof *tables);
        if (pixels && !is_changed)
            check_recoded(content, header.scan_start, &layout, tables, out, (size_t)written, wanted, pixels);
    }
    free(scan), free(out), free(tables);
    return digest;
}

uint64_t run_input(const uint8_t *data, size_t size) {
    uint64_t random = digest_of(FIRST_DIGEST, data, size), digest = FIRST_DIGEST;
    uint8_t *content = copy_of(data, size), pixels[3 * MAX_SIZE * MAX_SIZE];
    const uint8_t *contents[] = {content};
    int64_t num_bytes = (int64_t)size;
    int32_t facts[3] = {0}, again[3] = {0};
    variants[0].measure(contents, &num_bytes, 1, facts);
    variants[num_variants() - 1].measure(contents, &num_bytes, 1, again);
    REQUIRE(memcmp(facts, again, sizeof facts) == 0);
    Wanted wanted = wanted_of(facts, &random);
    int is_done = crop_in_all_ways(content, size, &wanted, &random, pixels);
    REQUIRE(!is_done || facts[0]);
    digest = digest_of(digest, facts, sizeof facts);
    if (is_done) digest = digest_of(digest, pixels, 3 * (size_t)wanted.size * (size_t)wanted.size);
    digest += recode_input(content, size, &wanted, is_done ? pixels : NULL, &random);
    free(content);
    return digest;
}
