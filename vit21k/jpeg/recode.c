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

enum { DAMAGED = -1, NO_MEMORY = -2, NO_ROOM = -3 };
enum { LOOK_BITS = 9, MAX_DC_BITS = 11, MAX_AC_BITS = 10, NUM_SLOTS = 4, MAX_BLOCKS = 10 };

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

typedef struct {
    uint16_t look[1 << LOOK_BITS]; /* length << 8 | value; 0: longer than LOOK_BITS */
    int32_t max_code[18];          /* largest code of each length, -1: none */
    int32_t value_offset[17];
    const Table *table;
} Decoder;

typedef struct {
    const uint8_t *at, *end;
    uint64_t bits; /* the lowest `count` are valid */
    int count;
} Reader;

typedef struct {
    uint32_t *items; /* slot << 24 | value << 16 | extra bits */
    size_t count, capacity;
} Symbols;

typedef struct {
    uint8_t *at, *end;
    uint64_t bits;
    int count, is_full;
} Writer;

static int prepare(Decoder *decoder, const Table *table) {
    int code = 0, index = 0;
    memset(decoder->look, 0, sizeof decoder->look);
    decoder->table = table;
    for (int length = 1; length <= 16; length++) {
        int count = table->counts[length];
        decoder->value_offset[length] = index - code;
        if (index + count > 256 || code + count > 1 << length) return DAMAGED;
        for (int i = 0; i < count; i++, code++, index++) {
            if (length > LOOK_BITS) continue;
            int spare = LOOK_BITS - length;
            for (int j = 0; j < 1 << spare; j++)
                decoder->look[(code << spare) | j] = (uint16_t)(length << 8 | table->values[index]);
        }
        decoder->max_code[length] = count ? code - 1 : -1;
        code <<= 1;
    }
    return 0;
}

/* Takes bytes until 48 bits are there, or a marker or the end is reached. */
static void fill(Reader *reader) {
    while (reader->count <= 48 && reader->at < reader->end) {
        uint8_t byte = reader->at[0];
        if (byte == 0xFF) {
            if (reader->at + 1 >= reader->end || reader->at[1] != 0) return;
            reader->at++;
        }
        reader->at++;
        reader->bits = reader->bits << 8 | byte;
        reader->count += 8;
    }
}

static int take(Reader *reader, int count) {
    if (reader->count < count) {
        fill(reader);
        if (reader->count < count) return DAMAGED;
    }
    reader->count -= count;
    return (int)(reader->bits >> reader->count & ((1u << count) - 1));
}

static int take_symbol(Reader *reader, const Decoder *decoder) {
    if (reader->count < 16) fill(reader);
    if (reader->count >= LOOK_BITS) {
        uint64_t ahead = reader->bits >> (reader->count - LOOK_BITS);
        uint16_t entry = decoder->look[ahead & ((1 << LOOK_BITS) - 1)];
        if (entry) {
            reader->count -= entry >> 8;
            return entry & 0xFF;
        }
    }
    int code = 0;
    for (int length = 1; length <= 16; length++) {
        int bit = take(reader, 1);
        if (bit < 0) return DAMAGED;
        code = code << 1 | bit;
        if (code <= decoder->max_code[length])
            return decoder->table->values[(code + decoder->value_offset[length]) & 0xFF];
    }
    return DAMAGED;
}

/* Only the padding may be left before a marker. */
static int at_marker(Reader *reader) {
    fill(reader);
    return reader->count < 8 && reader->at + 1 < reader->end && reader->at[0] == 0xFF;
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
    return 0;
}

static int magnitude_bits(int value) {
    int count = 0;
    for (unsigned rest = (unsigned)abs(value); rest; rest >>= 1) count++;
    return count;
}

static int take_dc(Reader *reader, const Decoder *decoder, int *dc) {
    int count = take_symbol(reader, decoder);
    if (count < 0 || count > MAX_DC_BITS) return DAMAGED;
    int extra = count ? take(reader, count) : 0;
    if (extra < 0) return DAMAGED;
    *dc += count && extra < 1 << (count - 1) ? extra - (1 << count) + 1 : extra;
    return abs(*dc) < 1 << MAX_DC_BITS ? 0 : DAMAGED;
}

static int add_dc(Symbols *symbols, int slot, int difference) {
    int count = magnitude_bits(difference);
    if (count > MAX_DC_BITS) return DAMAGED;
    int extra = difference < 0 ? difference + (1 << count) - 1 : difference;
    return add(symbols, slot, count, extra);
}

static int copy_ac(Reader *reader, const Decoder *decoder, Symbols *symbols, int slot) {
    for (int place = 1; place < 64; place++) {
        int value = take_symbol(reader, decoder);
        if (value < 0) return DAMAGED;
        int run = value >> 4, count = value & 15, extra = 0;
        if (count) {
            place += run;
            if (count > MAX_AC_BITS || place > 63) return DAMAGED;
            if ((extra = take(reader, count)) < 0) return DAMAGED;
        } else if (run == 15) {
            place += 15;
            if (place > 63) return DAMAGED;
        } else if (run) {
            return DAMAGED;
        }
        int status = add(symbols, slot, value, extra);
        if (status < 0) return status;
        if (!value) break;
    }
    return 0;
}

static int pass_restart(Reader *reader, int number) {
    if (!at_marker(reader) || reader->at[1] != 0xD0 + (number & 7)) return DAMAGED;
    reader->at += 2;
    reader->bits = 0;
    reader->count = 0;
    return 0;
}

static int read_all(Reader *reader, const Layout *layout, Decoder *decoders, Symbols *symbols) {
    int in[NUM_SLOTS] = {0}, out[NUM_SLOTS] = {0}, status;
    int64_t num_mcus = (int64_t)layout->mcus_x * layout->mcus_y;
    for (int64_t mcu = 0; mcu < num_mcus; mcu++) {
        if (mcu && layout->restart_in && mcu % layout->restart_in == 0) {
            if ((status = pass_restart(reader, (int)(mcu / layout->restart_in - 1))) < 0) return status;
            memset(in, 0, sizeof in);
        }
        if (mcu % layout->restart_out == 0) memset(out, 0, sizeof out);
        for (int block = 0; block < layout->num_blocks; block++) {
            int component = layout->component[block];
            int dc = layout->dc_slot[component], ac = layout->ac_slot[component] + NUM_SLOTS;
            if ((status = take_dc(reader, &decoders[dc], &in[component])) < 0) return status;
            if ((status = add_dc(symbols, dc, in[component] - out[component])) < 0) return status;
            out[component] = in[component];
            if ((status = copy_ac(reader, &decoders[ac], symbols, ac)) < 0) return status;
        }
    }
    return at_marker(reader) ? 0 : DAMAGED;
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

static void put(Writer *writer, unsigned bits, int count) {
    writer->bits = writer->bits << count | bits;
    writer->count += count;
    while (writer->count >= 8) {
        uint8_t byte = (uint8_t)(writer->bits >> (writer->count -= 8));
        if (writer->end - writer->at < 4) {
            writer->is_full = 1;
            return;
        }
        *writer->at++ = byte;
        if (byte == 0xFF) *writer->at++ = 0;
    }
}

static void put_restart(Writer *writer, int64_t number) {
    int padding = (8 - writer->count % 8) % 8;
    put(writer, (1u << padding) - 1, padding);
    if (writer->is_full) return;
    if (number < 0) return;
    *writer->at++ = 0xFF;
    *writer->at++ = (uint8_t)(0xD0 + (number & 7));
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
        put(writer, codes[slot][value] & 0xFFFF, (int)(codes[slot][value] >> 16));
        int extra = slot < dc_slots ? value : value & 15;
        if (extra) put(writer, item & 0xFFFF, extra);
    }
    put_restart(writer, -1);
}

/* Recodes `num_bytes` of `data`, which end with the marker after the scan and what follows it.
 *
 * `tables`: 4 for DC, then 4 for AC; replaced by the new ones.  Returns the bytes written to `out`,
 * or DAMAGED, NO_MEMORY, NO_ROOM.
 */
long recode(const uint8_t *data, size_t num_bytes, const Layout *layout, Table *tables, uint8_t *out, size_t capacity) {
    Reader reader = {data, data + num_bytes, 0, 0};
    Writer writer = {out, out + capacity, 0, 0, 0};
    Decoder *decoders = calloc(2 * NUM_SLOTS, sizeof *decoders);
    Symbols symbols = {malloc((num_bytes + 64) * sizeof(uint32_t)), 0, num_bytes + 64};
    long status = decoders && symbols.items ? 0 : NO_MEMORY;
    for (int slot = 0; slot < 2 * NUM_SLOTS && status == 0; slot++) status = prepare(&decoders[slot], &tables[slot]);
    if (status == 0) status = read_all(&reader, layout, decoders, &symbols);
    if (status == 0) {
        static const Table none;
        int64_t(*frequency)[257] = calloc(2 * NUM_SLOTS, sizeof *frequency);
        if (frequency) {
            for (size_t i = 0; i < symbols.count; i++) frequency[symbols.items[i] >> 24][symbols.items[i] >> 16 & 0xFF]++;
            for (int slot = 0; slot < 2 * NUM_SLOTS; slot++) {
                int is_used = 0;
                for (int value = 0; value < 256; value++) is_used |= frequency[slot][value] > 0;
                tables[slot] = none;
                if (is_used) best_table(frequency[slot], &tables[slot]);
            }
            write_all(&writer, layout, &symbols, tables);
            status = writer.is_full ? NO_ROOM : writer.at - out;
        } else {
            status = NO_MEMORY;
        }
        free(frequency);
    }
    free(symbols.items);
    free(decoders);
    return status;
}
