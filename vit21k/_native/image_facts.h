/* Bytes of an image file -> its facts: format, size, components, whether it ends, content digest.
 *
 * The results are those of `image_facts` in file_digest.py, which documents what they mean; the
 * tests compare the two.  PPM, gzip, and what may be text or a zip file are left to it.
 *
 * Files are hostile: every position is checked against the number of bytes.
 */
#ifndef IMAGE_FACTS_H
#define IMAGE_FACTS_H

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "xxh3_128.h"

enum { HAS_DIGEST = 1, HAS_CONTENT = 2, HAS_PROBE = 4, HAS_FACTS = 8, SAW_END = 16, LOOKED_FOR_END = 32 };
enum { UNKNOWN, JPEG, PNG, GIF, WEBP, BMP, TIFF }; /* `FORMATS` of scan.py */
enum { HEAD_BYTES = 64, MAX_DIMENSION = 0x7FFFFFFF };

/* What is known of a file; `ROW` of scan.py has the same layout. */
typedef struct __attribute__((packed)) {
    int64_t num_bytes, mtime_ns, ctime_ns;
    uint64_t inode;
    uint8_t digest[16], content_digest[16], probe[16];
    uint8_t format;
    uint32_t width, height;
    uint8_t components, flags;
} Row;

/* The first bytes of an image as they were, to restore them. */
enum { SAVED_BYTES = 1 << 16 };
typedef struct {
    uint8_t first[SAVED_BYTES], *more; /* more: instead of first, if that is too small */
    int64_t end;
} Saved;

static int begins_with(const uint8_t *data, int64_t place, int64_t size, const char *text, int64_t length) {
    return place + length <= size && memcmp(data + place, text, (size_t)length) == 0;
}

/* The unsigned integer of *count* bytes at *place*, or of those that there are. */
static uint64_t number_at(const uint8_t *data, int64_t size, int64_t place, int count, int is_big_endian) {
    uint64_t number = 0;
    for (int n = 0; n < count && place + n < size; n++)
        number = is_big_endian ? number << 8 | data[place + n] : number | (uint64_t)data[place + n] << 8 * n;
    return number;
}

static uint32_t big_endian(const uint8_t *at, int count) { return (uint32_t)number_at(at, count, 0, count, 1); }
static uint32_t little_endian(const uint8_t *at, int count) { return (uint32_t)number_at(at, count, 0, count, 0); }

/* What to do with a segment, by the second byte of its marker (ITU-T T.81, table B.1). */
enum { PLAIN, METADATA, FRAME, SCAN, PROFILE, NO_LENGTH, FILL, JUNK };

static int kind_of(uint8_t marker) {
    if (marker == 0x00) return JUNK;
    if (marker == 0xE2) return PROFILE;
    if ((marker & 0xF0) == 0xE0 || marker == 0xFE) return METADATA;
    if (marker == 0xDA) return SCAN;
    if (marker == 0x01 || (marker >= 0xD0 && marker <= 0xD9)) return NO_LENGTH;
    if (marker == 0xFF) return FILL;
    const int is_table = marker == 0xC4 || marker == 0xC8 || marker == 0xCC;
    return (marker & 0xF0) == 0xC0 && !is_table ? FRAME : PLAIN;
}

static int is_dropped(int kind, const uint8_t *data, int64_t place, int64_t size) {
    if (kind == PROFILE) return !begins_with(data, place + 4, size, "ICC_PROFILE", 12); /* with its 0 */
    return kind == METADATA || kind == FILL;
}

/* The segments that decide how colours are stored, as libjpeg reads them. */
typedef struct {
    uint8_t frame[20]; /* the last frame header, if it is that long */
    int has_frame, has_jfif, transform; /* transform: of Adobe's last segment; -1: there is none */
} Colours;

static void note_colours(Colours *colours, const uint8_t *data, int64_t place, int64_t size, int64_t after) {
    enum { JFIF_BYTES = 18, ADOBE_BYTES = 16 };
    const uint8_t marker = data[place + 1];
    if (marker == 0xE0 && after - place >= JFIF_BYTES && begins_with(data, place + 4, size, "JFIF", 5))
        colours->has_jfif = 1;
    if (marker == 0xEE && after - place >= ADOBE_BYTES && place + ADOBE_BYTES <= size &&
        begins_with(data, place + 4, size, "Adobe", 5))
        colours->transform = data[place + 15];
}

static void note_frame(Row *row, Colours *colours, const uint8_t *data, int64_t place, int64_t size) {
    row->width = row->height = row->components = 0; /* unknown */
    colours->has_frame = place + (int64_t)sizeof colours->frame <= size;
    if (colours->has_frame) memcpy(colours->frame, data + place, sizeof colours->frame);
    if (place + 10 > size) return;
    row->height = big_endian(data + place + 5, 2);
    row->width = big_endian(data + place + 7, 2);
    row->components = data[place + 9];
}

/* How colours are stored: nothing for YCbCr, grey and CMYK. */
static const char *unusual_colours(const Colours *colours) {
    enum { LOSSLESS = 0xC3 };
    const uint8_t *frame = colours->frame;
    if (!colours->has_frame) return "";
    if (frame[9] == 4) return colours->transform > 0 ? "YCCK" : "";
    if (frame[9] != 3 || colours->has_jfif) return "";
    if (colours->transform >= 0) return colours->transform ? "" : "RGB";
    if (frame[1] == LOSSLESS) return "by decoder";
    return frame[10] == 'R' && frame[13] == 'G' && frame[16] == 'B' ? "RGB" : "";
}

/* Whether the first end marker after *place* is at the very end. */
static int ends_once(const uint8_t *data, int64_t place, int64_t size) {
    const uint8_t *at = data + place, *last = data + size - 2;
    if (last[0] != 0xFF || last[1] != 0xD9) return 0;
    while ((at = memchr(at, 0xFF, (size_t)(last - at + 1))) < last)
        if (*++at == 0xD9) return 0;
    return 1;
}

/* The position of the next 0xFF that a byte outside of image data follows; *size* if there is none.
 * in_header: 0xD0 to 0xD7, which may be in image data, count. */
static int64_t next_marker(const uint8_t *data, int64_t place, int64_t size, int in_header) {
    while (place < size - 1) {
        const uint8_t *found = memchr(data + place, 0xFF, (size_t)(size - 1 - place));
        if (!found) break;
        place = found - data;
        const uint8_t marker = found[1];
        if (marker != 0x00 && marker != 0xFF && (in_header || (marker & 0xF8) != 0xD0)) return place;
        place++;
    }
    return size;
}

/* Where the image ends whose first scan begins at *place*; 0 if it does not end. */
static int64_t end_of_jpeg(const uint8_t *data, int64_t place, int64_t size) {
    if (ends_once(data, place, size)) return size; /* nearly always */
    while ((place = next_marker(data, place, size, 0)) < size) {
        const uint8_t marker = data[place + 1];
        if (marker == 0xD9) return place + 2;
        if (place + 4 > size) break;
        place += 2 + (kind_of(marker) < NO_LENGTH ? big_endian(data + place + 2, 2) : 0);
    }
    return 0;
}

static int save_up_to(Saved *saved, const uint8_t *data, int64_t end, int64_t size) {
    if (!saved || end <= saved->end) return 1;
    if (end > SAVED_BYTES && !saved->more) {
        if (!(saved->more = malloc((size_t)size))) return 0;
        memcpy(saved->more, saved->first, (size_t)saved->end);
    }
    uint8_t *bytes = saved->more ? saved->more : saved->first;
    memcpy(bytes + saved->end, data + saved->end, (size_t)(end - saved->end));
    saved->end = end;
    return 1;
}

static void restore(Saved *saved, uint8_t *data) {
    memcpy(data, saved->more ? saved->more : saved->first, (size_t)saved->end);
    free(saved->more);
}

static int digest_content(Row *row, const uint8_t *data, int64_t size, const char *colours, TakeIn *take_in) {
    const size_t num_more = strlen(colours);
    if (!num_more) {
        xxh3_128(data, (size_t)size, take_in, row->content_digest);
        return 1;
    }
    uint8_t *copy = malloc((size_t)size + num_more);
    if (!copy) return 0;
    memcpy(copy, data, (size_t)size);
    memcpy(copy + size, colours, num_more);
    xxh3_128(copy, (size_t)size + num_more, take_in, row->content_digest);
    free(copy);
    return 1;
}

/* Facts of a JPEG.  What is kept of its header is moved up to the first scan, so that its content
 * digest is one call.  Returns 0 if there is no memory. */
static int note_jpeg(Row *row, uint8_t *data, int64_t size, TakeIn *take_in, Saved *saved) {
    int64_t place = 2, start = 2, kept = 2; /* kept: end of what is kept of the bytes before start */
    Colours colours = {.transform = -1};
    row->format = JPEG;
    row->flags |= HAS_FACTS | LOOKED_FOR_END;
    while (place + 4 <= size) {
        const int kind = data[place] == 0xFF ? kind_of(data[place + 1]) : JUNK;
        if (kind == JUNK) { /* decoders skip it; it stays in the digest */
            place = next_marker(data, place, size, 1);
            continue;
        }
        if (kind == SCAN) {
            const int64_t stop = end_of_jpeg(data, place, size), first = start - (kept - 2);
            if (!save_up_to(saved, data, start, size)) return 0;
            memmove(data + first, data + 2, (size_t)(kept - 2));
            row->flags |= HAS_CONTENT | (stop ? SAW_END : 0);
            return digest_content(row, data + first, (stop ? stop : size) - first, unusual_colours(&colours), take_in);
        }
        const int length = kind < NO_LENGTH ? (int)big_endian(data + place + 2, 2) : 0;
        const int64_t after = place + (kind == FILL ? 1 : kind == NO_LENGTH ? 2 : 2 + (length < 2 ? 2 : length));
        if (kind == METADATA) note_colours(&colours, data, place, size, after);
        if (kind == FRAME) note_frame(row, &colours, data, place, size);
        if (is_dropped(kind, data, place, size)) {
            if (!save_up_to(saved, data, place, size)) return 0;
            memmove(data + kept, data + start, (size_t)(place - start));
            kept += place - start;
            start = after;
        }
        place = after;
    }
    return 1;
}

static void note_size(Row *row, uint32_t width, uint32_t height) {
    row->width = width;
    row->height = height;
}

static void note_end(Row *row, int has_end) { row->flags |= LOOKED_FOR_END | (has_end ? SAW_END : 0); }

static int has_end_chunk(const uint8_t *data, int64_t size) {
    if (memmem(data + size - HEAD_BYTES, HEAD_BYTES, "IEND", 4)) return 1;
    for (int64_t place = 8; place + 12 <= size; place += 12 + (int64_t)big_endian(data + place, 4))
        if (begins_with(data, place + 4, size, "IEND", 4)) return 1;
    return 0;
}

static void note_png(Row *row, const uint8_t *data, int64_t size) {
    static const uint8_t components[7] = {1, 0, 3, 3, 2, 0, 4}; /* by colour type; 3: a palette of RGB */
    const int has_header = begins_with(data, 12, size, "IHDR", 4);
    row->format = PNG;
    note_end(row, has_header && has_end_chunk(data, size));
    if (!has_header) return;
    note_size(row, big_endian(data + 16, 4) & MAX_DIMENSION, big_endian(data + 20, 4) & MAX_DIMENSION);
    row->components = data[25] < sizeof components ? components[data[25]] : 0;
}

/* Size of the screen, or as far as the first frame extends beyond it. */
static void note_gif(Row *row, const uint8_t *data, int64_t size) {
    enum { FRAME_START = 0x2C, EXTENSION = 0x21 };
    row->format = GIF;
    row->components = 3;
    note_end(row, data[size - 1] == ';');
    note_size(row, little_endian(data + 6, 2), little_endian(data + 8, 2));
    int64_t place = 13 + (data[10] & 0x80 ? 3 << ((data[10] & 7) + 1) : 0);
    for (; place + 10 <= size && data[place] != FRAME_START; place++) {
        if (data[place] != EXTENSION) continue;
        for (place += 2; place < size && data[place]; place += 1 + data[place]) continue; /* blocks, to an empty one */
    }
    if (place + 10 > size) return;
    const uint32_t right = little_endian(data + place + 1, 2) + little_endian(data + place + 5, 2);
    const uint32_t bottom = little_endian(data + place + 3, 2) + little_endian(data + place + 7, 2);
    note_size(row, right > row->width ? right : row->width, bottom > row->height ? bottom : row->height);
}

static void note_webp(Row *row, const uint8_t *data, int64_t size) {
    row->format = WEBP;
    note_end(row, 8 + (int64_t)little_endian(data + 4, 4) <= size);
    const uint32_t bits = little_endian(data + 21, 4);
    if (begins_with(data, 12, size, "VP8X", 4))
        note_size(row, 1 + little_endian(data + 24, 3), 1 + little_endian(data + 27, 3));
    else if (begins_with(data, 12, size, "VP8L", 4))
        note_size(row, 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF));
    else if (begins_with(data, 12, size, "VP8 ", 4))
        note_size(row, little_endian(data + 26, 2) & 0x3FFF, little_endian(data + 28, 2) & 0x3FFF);
}

static uint32_t magnitude(uint32_t number) { return (number >> 31 ? 0 - number : number) & MAX_DIMENSION; }

static void note_bmp(Row *row, const uint8_t *data) {
    row->format = BMP;
    if (little_endian(data + 14, 4) < 40) /* OS/2 */
        note_size(row, little_endian(data + 18, 2), little_endian(data + 20, 2));
    else
        note_size(row, magnitude(little_endian(data + 18, 4)), magnitude(little_endian(data + 22, 4)));
}

/* What the first directory of a TIFF or BigTIFF says; of equal tags the first one counts. */
static void note_tiff(Row *row, const uint8_t *data, int64_t size) {
    enum { WIDTH, HEIGHT, PHOTOMETRIC, SAMPLES, NUM_TAGS, PALETTE = 3 };
    static const uint16_t tags[NUM_TAGS] = {256, 257, 262, 277};
    const int is_big_endian = data[0] == 'M', is_big = data[2] == '+' || data[3] == '+';
    const int offset_bytes = is_big ? 8 : 4, count_bytes = is_big ? 8 : 2, entry_bytes = is_big ? 20 : 12;
    uint64_t values[NUM_TAGS] = {0};
    int found[NUM_TAGS] = {0};
    row->format = TIFF;
    const uint64_t at = number_at(data, size, offset_bytes, offset_bytes, is_big_endian);
    uint64_t left = at < (uint64_t)size ? number_at(data, size, (int64_t)at, count_bytes, is_big_endian) : 0;
    if (left > 0xFFFF) left = 0xFFFF;
    int64_t place = left ? (int64_t)at + count_bytes : size;
    for (; left && place + entry_bytes <= size; left--, place += entry_bytes) {
        const uint64_t tag = number_at(data, size, place, 2, is_big_endian);
        const uint64_t type = number_at(data, size, place + 2, 2, is_big_endian);
        int bytes = type == 1 ? 1 : type == 3 ? 2 : type == 4 ? 4 : type == 16 ? offset_bytes : 0;
        for (int n = 0; n < NUM_TAGS; n++) {
            if (tag != tags[n] || found[n]) continue;
            found[n] = 1;
            values[n] = number_at(data, size, place + 4 + offset_bytes, bytes, is_big_endian);
        }
    }
    for (int n = WIDTH; n <= HEIGHT; n++)
        if (values[n] > MAX_DIMENSION) values[n] = 0;
    note_size(row, (uint32_t)values[WIDTH], (uint32_t)values[HEIGHT]);
    const uint64_t samples = values[PHOTOMETRIC] == PALETTE ? 3 : found[SAMPLES] ? values[SAMPLES] : 1;
    if (samples < 256 && row->width) row->components = (uint8_t)samples;
}

/* Whether these bytes are of a format that only file_digest.py knows: PPM, gzip, zip, PDF, HTML. */
static int may_be_text(const uint8_t *data) {
    return strchr("\t\n\v\f\r <%P\xef\x1f", data[0]) != NULL; /* also for 0, which is not text */
}

/* Notes the facts of *size* bytes: *data* is changed by that, and *saved*, if there is one, holds
 * what was there.  Returns 0 where Python has to look at them. */
static int note_image(Row *row, uint8_t *data, int64_t size, TakeIn *take_in, Saved *saved) {
    if (size >= 4 && memcmp(data, "\xff\xd8\xff", 3) == 0) return note_jpeg(row, data, size, take_in, saved);
    if (size < HEAD_BYTES) return 0;
    const int is_tiff = memcmp(data, "II*\0", 4) == 0 || memcmp(data, "MM\0*", 4) == 0 ||
                        memcmp(data, "II+\0", 4) == 0 || memcmp(data, "MM\0+", 4) == 0;
    if (memcmp(data, "\x89PNG\r\n\x1a\n", 8) == 0) note_png(row, data, size);
    else if (memcmp(data, "GIF87a", 6) == 0 || memcmp(data, "GIF89a", 6) == 0) note_gif(row, data, size);
    else if (memcmp(data, "RIFF", 4) == 0 && memcmp(data + 8, "WEBP", 4) == 0) note_webp(row, data, size);
    else if (memcmp(data, "BM", 2) == 0) note_bmp(row, data);
    else if (is_tiff) note_tiff(row, data, size);
    else if (data[0] && may_be_text(data)) return 0;
    row->flags |= HAS_FACTS;
    return 1;
}

#endif
