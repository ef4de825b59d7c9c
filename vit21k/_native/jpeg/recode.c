/* The entropy-coded data of a baseline JPEG -> the same coefficients with restart markers.
 *
 * Huffman symbols are read and written again; no coefficient is touched.  At each restart the
 * prediction of the DC coefficients starts afresh, so those differences are computed anew.  Tables
 * are the best ones for these symbols (ITU-T T.81, Annex K.2).  `recode_python.py` is the same in
 * Python and writes the same bytes; the tests compare the two.
 *
 * Nothing is trusted: every read and write is checked against the ends that the caller gave.
 */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "block.h"

enum { NO_SPACE = 4, MAX_DC_BITS = 11, MAX_AC_BITS = 10, MAX_BLOCKS = 10 };

/* What the caller knows from the headers; `recode.py` has the same layout. */
typedef struct {
    int32_t mcus_x, mcus_y;
    int32_t restart_in, restart_out; /* MCUs; 0: none */
    int32_t num_blocks;              /* of an MCU */
    int32_t component[MAX_BLOCKS];   /* which component each block is of, 0 to 3 */
    int32_t dc_slot[NUM_SLOTS];      /* which tables each component uses, 0 to 3 */
    int32_t ac_slot[NUM_SLOTS];
} Layout;

/* A Huffman table as DHT stores it: how many codes of each length, and their values. */
typedef struct {
    uint8_t counts[17]; /* [0] is not used */
    uint8_t values[256];
} Table;

/* A scan on its way: its data from restart to restart, without stuffed bytes. */
typedef struct {
    const uint8_t *at, *end;
    uint8_t *scratch;
    Reader reader;
    const Huffman *tables; /* for DC, then for AC */
} Scan;

typedef struct {
    uint32_t *items; /* slot << 24 | value << 16 | extra bits */
    size_t count, capacity;
} Symbols;

typedef struct {
    uint8_t *at, *end;
    uint64_t bits; /* the lowest `count` are not written yet */
    int count, is_full;
} Writer;

/* Set the reader to the data before the next marker. */
static int start_reading(Scan *scan) {
    uint8_t *out = scan->scratch;
    scan->reader = (Reader){.at = out};
    while (scan->end - scan->at >= 2) {
        const uint8_t *found = memchr(scan->at, 0xFF, (size_t)(scan->end - scan->at - 1));
        if (!found) return DAMAGED;
        size_t count = (size_t)(found - scan->at) + !found[1]; /* with the 0xFF of a stuffed byte */
        memcpy(out, scan->at, count);
        out += count;
        scan->at = found + (found[1] ? 0 : 2);
        if (!found[1]) continue;
        memset(out, 0, PADDING);
        scan->reader.end = out;
        return DONE;
    }
    return DAMAGED;
}

/* Only padding may be left before a marker. */
static int stop_reading(const Scan *scan) {
    int64_t left = (scan->reader.end - scan->reader.at) * 8 + scan->reader.count;
    return left >= 0 && left < 8 ? DONE : DAMAGED;
}

static int pass_restart(Scan *scan, int64_t number) {
    if (stop_reading(scan) || scan->at[1] != RST0 + (number & 7)) return DAMAGED;
    scan->at += 2;
    return start_reading(scan);
}

static int add(Symbols *symbols, int slot, int value, int extra) {
    if (symbols->count == symbols->capacity) {
        size_t capacity = symbols->capacity * 2;
        uint32_t *items = realloc(symbols->items, capacity * sizeof *items);
        if (!items) return NO_MEMORY;
        symbols->items = items;
        symbols->capacity = capacity;
    }
    symbols->items[symbols->count++] = (uint32_t)slot << 24 | (uint32_t)value << 16 | (uint32_t)extra;
    return DONE;
}

static int magnitude_bits(int value) {
    return value ? 32 - __builtin_clz((unsigned)abs(value)) : 0;
}

static inline int take(Reader *reader, int count) {
    int bits = count ? (int)peek(reader, count) : 0;
    drop(reader, count);
    return bits;
}

static int take_dc(Reader *reader, const Huffman *table, int *dc) {
    refill(reader);
    int count = read_code(reader, table);
    if (count < 0 || count > MAX_DC_BITS) return DAMAGED;
    *dc += extended(take(reader, count), count);
    return abs(*dc) < 1 << MAX_DC_BITS ? DONE : DAMAGED;
}

static int add_dc(Symbols *symbols, int slot, int difference) {
    int count = magnitude_bits(difference);
    if (count > MAX_DC_BITS) return DAMAGED;
    int extra = difference < 0 ? difference + (1 << count) - 1 : difference;
    return add(symbols, slot, count, extra);
}

static int copy_ac(Reader *outer, const Huffman *table, Symbols *symbols, int slot) {
    Reader reader = *outer; /* in registers */
    for (int place = 1; place <= LAST; place++) {
        refill(&reader);
        int value = read_code(&reader, table), run = value >> 4, count = value & 15;
        if (value < 0 || count > MAX_AC_BITS || (!count && run && run != 15)) return DAMAGED;
        int is_end = !value, extra = take(&reader, count);
        place += run;
        if (place > LAST) return DAMAGED;
        int status = add(symbols, slot, value, extra);
        if (status) return status;
        if (is_end) break;
    }
    *outer = reader;
    return reader.at > reader.end + 8 ? DAMAGED : DONE;
}

static int read_all(Scan *scan, const Layout *layout, Symbols *symbols) {
    int in[NUM_SLOTS] = {0}, out[NUM_SLOTS] = {0};
    int64_t num_mcus = (int64_t)layout->mcus_x * layout->mcus_y;
    int status = start_reading(scan);
    for (int64_t mcu = 0; mcu < num_mcus && !status; mcu++) {
        if (mcu && layout->restart_in && mcu % layout->restart_in == 0) {
            if ((status = pass_restart(scan, mcu / layout->restart_in - 1))) break;
            memset(in, 0, sizeof in);
        }
        if (mcu % layout->restart_out == 0) memset(out, 0, sizeof out);
        for (int block = 0; block < layout->num_blocks && !status; block++) {
            int component = layout->component[block];
            int dc = layout->dc_slot[component], ac = layout->ac_slot[component] + NUM_SLOTS;
            if ((status = take_dc(&scan->reader, &scan->tables[dc], &in[component]))) break;
            if ((status = add_dc(symbols, dc, in[component] - out[component]))) break;
            out[component] = in[component];
            status = copy_ac(&scan->reader, &scan->tables[ac], symbols, ac);
        }
    }
    return status ? status : stop_reading(scan);
}

/* Annex K.2; of equally frequent ones the larger value is joined first, as in libjpeg. */
static void best_table(int64_t *frequency, Table *table) {
    int lengths[257] = {0}, next[257], counts[64] = {0};
    for (int i = 0; i < 257; i++) next[i] = -1;
    frequency[256] = 1; /* so that no code is all ones */
    for (;;) {
        int first = -1, second = -1;
        for (int i = 0; i <= 256; i++)
            if (frequency[i] && (first < 0 || frequency[i] <= frequency[first])) first = i;
        for (int i = 0; i <= 256; i++)
            if (frequency[i] && i != first && (second < 0 || frequency[i] <= frequency[second])) second = i;
        if (second < 0) break;
        frequency[first] += frequency[second];
        frequency[second] = 0;
        for (lengths[first]++; next[first] >= 0; lengths[first]++) first = next[first];
        next[first] = second;
        for (lengths[second]++; next[second] >= 0; lengths[second]++) second = next[second];
    }
    for (int i = 0; i <= 256; i++) counts[lengths[i] < 63 ? lengths[i] : 63]++;
    counts[0] = 0;
    for (int length = 63; length > 16; length--)
        while (counts[length]) {
            int shorter = length - 2;
            while (!counts[shorter]) shorter--;
            counts[length] -= 2;
            counts[length - 1]++;
            counts[shorter + 1] += 2;
            counts[shorter]--;
        }
    for (int length = 16; length; length--)
        if (counts[length]) {
            counts[length]--; /* the one that would be all ones */
            break;
        }
    memset(table, 0, sizeof *table);
    for (int length = 1; length <= 16; length++) table->counts[length] = (uint8_t)counts[length];
    for (int length = 1, index = 0; length < 257; length++)
        for (int value = 0; value < 256; value++)
            if (lengths[value] == length) table->values[index++] = (uint8_t)value;
}

static void put_byte(Writer *writer, uint8_t byte) {
    if (writer->end - writer->at < 2) {
        writer->is_full = 1;
        return;
    }
    *writer->at++ = byte;
    if (byte == 0xFF) *writer->at++ = 0;
}

/* Write whole bytes, four at a time where none has to be stuffed. */
static void flush(Writer *writer) {
    while (writer->count >= 32 && writer->end - writer->at >= 4) {
        uint32_t four = (uint32_t)(writer->bits >> (writer->count - 32));
        if ((~four - 0x01010101u) & four & 0x80808080u) break; /* one of them is 0xFF */
        four = __builtin_bswap32(four);
        memcpy(writer->at, &four, 4);
        writer->at += 4, writer->count -= 32;
    }
    while (writer->count >= 8 && !writer->is_full)
        put_byte(writer, (uint8_t)(writer->bits >> (writer->count -= 8)));
}

/* count: 32 or less. */
static inline void put(Writer *writer, uint32_t bits, int count) {
    if (writer->count > 32) flush(writer);
    writer->bits = writer->bits << count | bits;
    writer->count += count;
}

/* number: of the restart marker; -1: none, since the data end. */
static void put_restart(Writer *writer, int64_t number) {
    flush(writer);
    int padding = (8 - writer->count % 8) % 8;
    put(writer, (1u << padding) - 1, padding);
    flush(writer);
    if (number < 0 || writer->is_full) return;
    if (writer->end - writer->at < 2) {
        writer->is_full = 1;
        return;
    }
    *writer->at++ = 0xFF;
    *writer->at++ = (uint8_t)(RST0 + (number & 7));
}

static void code_of(const Table *table, uint32_t *codes) {
    int code = 0, index = 0;
    for (int length = 1; length <= 16; length++, code <<= 1)
        for (int i = 0; i < table->counts[length]; i++)
            codes[table->values[index++]] = (uint32_t)length << 16 | (uint32_t)code++;
}

static void write_all(Writer *writer, const Layout *layout, const Symbols *symbols, const Table *tables) {
    static const int dc_slots = NUM_SLOTS;
    uint32_t codes[2 * NUM_SLOTS][256] = {{0}};
    int64_t block = 0, per_restart = (int64_t)layout->restart_out * layout->num_blocks;
    for (int slot = 0; slot < 2 * NUM_SLOTS; slot++) code_of(&tables[slot], codes[slot]);
    for (size_t i = 0; i < symbols->count && !writer->is_full; i++) {
        uint32_t item = symbols->items[i];
        int slot = (int)(item >> 24), value = item >> 16 & 0xFF;
        if (slot < dc_slots) {
            if (block && block % per_restart == 0) put_restart(writer, block / per_restart - 1);
            block++;
        }
        int count = slot < dc_slots ? value : value & 15;
        uint32_t code = codes[slot][value];
        put(writer, (code & 0xFFFF) << count | (item & 0xFFFF), (int)(code >> 16) + count);
    }
    put_restart(writer, -1);
}

/* Tables that are best for the symbols. */
static int best_tables(const Symbols *symbols, Table *tables) {
    int64_t(*frequency)[257] = calloc(2 * NUM_SLOTS, sizeof *frequency);
    if (!frequency) return NO_MEMORY;
    for (size_t i = 0; i < symbols->count; i++)
        frequency[symbols->items[i] >> 24][symbols->items[i] >> 16 & 0xFF]++;
    for (int slot = 0; slot < 2 * NUM_SLOTS; slot++) {
        int is_used = 0;
        for (int value = 0; value < 256; value++) is_used |= frequency[slot][value] > 0;
        memset(&tables[slot], 0, sizeof tables[slot]);
        if (is_used) best_table(frequency[slot], &tables[slot]);
    }
    free(frequency);
    return DONE;
}

static int make_tables(const Table *tables, Huffman *made) {
    for (int slot = 0; slot < 2 * NUM_SLOTS; slot++) {
        int total = 0;
        for (int length = 1; length <= 16; length++) total += tables[slot].counts[length];
        if (total > 256 || make_table(&made[slot], tables[slot].counts + 1, CODES, AT_ONCE)) return DAMAGED;
    }
    return DONE;
}

/* Recodes `num_bytes` of `data`, which end with the marker after the scan and what follows it.
 *
 * `tables`: 4 for DC, then 4 for AC; replaced by the new ones.  Returns the bytes written to `out`,
 * or -DAMAGED, -NO_MEMORY, -NO_SPACE.
 */
long recode(const uint8_t *data, size_t num_bytes, const Layout *layout, Table *tables, uint8_t *out, size_t capacity) {
    Writer writer = {out, out + capacity, 0, 0, 0};
    Huffman *made = calloc(2 * NUM_SLOTS, sizeof *made);
    uint8_t *scratch = malloc(num_bytes + PADDING);
    Symbols symbols = {malloc((num_bytes + 64) * sizeof(uint32_t)), 0, num_bytes + 64};
    Scan scan = {.at = data, .end = data + num_bytes, .scratch = scratch, .tables = made};
    int status = made && scratch && symbols.items ? DONE : NO_MEMORY;
    if (!status) status = make_tables(tables, made);
    if (!status) status = read_all(&scan, layout, &symbols);
    if (!status) status = best_tables(&symbols, tables);
    if (!status) write_all(&writer, layout, &symbols, tables);
    if (!status && writer.is_full) status = NO_SPACE;
    free(symbols.items);
    free(scratch);
    free(made);
    return status ? -status : writer.at - out;
}
