/* Baseline JPEGs -> crops of one size: decoded, resized, flipped; many with one call.
 *
 * Supported is a JPEG that is Huffman-coded from top to bottom in one scan, with 8 bits, grey or YCbCr
 * at 4:4:4, 4:2:2 or 4:2:0, and no unusual segment; and a raw image of `vit21k pack`.  Pixels are those
 * of libjpeg-turbo (its accurate integer transform, its triangle filter for chroma) and of torch's
 * resampling, or of Pillow's, bit-identical: the tests compare them.  Whatever is unsupported, is
 * damaged, or might leave the 16 bits of libjpeg-turbo's vector code is refused, and the caller
 * takes libjpeg-turbo.  So a refusal costs time, and changes no result.
 *
 * Only what a crop needs is done: rows below it are not read; blocks to its left and right are
 * read, since only reading finds where the next one begins, but not transformed; and where restart
 * markers divide the rows into tiles, tiles outside the crop are not even read.
 *
 * Nothing is trusted: every read and write is checked against the ends that the caller gave.
 */
#ifndef VARIANT /* crop_avx2.c includes this file with another one */
#define VARIANT(name) name##_portable
#endif

#include "raw.h"
#include "region.h"

#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "pixels are kept in the byte order of x86 and ARM"
#endif

enum { MAX_KEPT = 1 << 26 }; /* bytes that a thread keeps from image to image */

/* What is asked for: a box of the image (left, top, right, bottom), its width and height when
 * it is resized, left and top of the window of that, whether the window is flipped, and whether
 * columns are resized before rows. */
typedef struct {
    int32_t box[4], resized[2], window[2], is_flipped, is_transposed;
} Crop;

/* One row of the region -> its pixels. */
static void make_pixels(const Region *region, const int32_t *box, int y, uint32_t *pixels) {
    int left = box[0], width = box[2] - box[0];
    if (region->raw) {
        size_t place = (size_t)y * (size_t)region->header->width + (size_t)left;
        raw_to_pixels(region->raw + 3 * place, width, pixels);
        return;
    }
    const Plane *planes = region->planes;
    const Component *luma = region->header->components;
    uint8_t *blue = region->chroma + 32, *red = blue + width + 64;
    const uint8_t *row = planes[0].samples +
        (size_t)(y - planes[0].first_y) * planes[0].stride + left - planes[0].first_x;
    if (region->header->num_components == 1) {
        grey_to_pixels(row, width, pixels);
        return;
    }
    upsample_row(&planes[1], luma, y, left, width, region->sums, blue);
    upsample_row(&planes[2], luma, y, left, width, region->sums, red);
    to_pixels(row, blue, red, width, pixels);
}

/* Give the resampler the rows of the region from *first* on, ROWS_AT_ONCE or what is left. */
static void resample_rows(Region *region, const int32_t *box, int first) {
    const uint32_t *rows[ROWS_AT_ONCE];
    for (int i = 0; i < ROWS_AT_ONCE; i++) {
        uint32_t *pixels = region->pixels + region->stride * (size_t)i;
        int y = box[1] + first + i;
        if (y < box[3]) make_pixels(region, box, y, pixels);
        rows[i] = pixels;
    }
    take_rows(&region->resampler, rows, first);
}

/* The same with columns, which have been transposed. */
static void resample_columns(Region *region, const int32_t *box, int first) {
    const uint32_t *columns[ROWS_AT_ONCE];
    for (int i = 0; i < ROWS_AT_ONCE; i++) {
        int x = at_most(first + i, box[2] - box[0] - 1);
        columns[i] = region->transposed.pixels + region->transposed.stride * (size_t)x;
    }
    take_rows(&region->resampler, columns, first);
}

/* Write the result, row by row as soon as the rows are taken that it is made of. */
static void resample(Region *region, const Resize *resize, const int32_t *box, uint8_t *out) {
    int size = resize->across.count, num_taken = 0, is_transposed = resize->is_transposed;
    uint8_t *planes = is_transposed ? region->transposed.planes : out;
    for (int y = box[1]; is_transposed && y < box[3]; y++) {
        make_pixels(region, box, y, region->pixels);
        transpose_row(&region->transposed, region->pixels, box[2] - box[0], y - box[1]);
    }
    for (int y = 0; y < size; y++) {
        int needed = num_rows_for(&region->resampler, y);
        for (; num_taken < needed; num_taken += ROWS_AT_ONCE)
            (is_transposed ? resample_columns : resample_rows)(region, box, num_taken);
        write_planes(&region->resampler, y, (size_t)size * size, planes + (size_t)y * size);
    }
    if (is_transposed) transpose_back(&region->transposed, size, resize->is_flipped, out);
}

/* Return what is done to both sides; where nonsense is asked for, sides have no pixels. */
static Resize resize_of(const Crop *crop, int size, int is_bicubic, int precision) {
    Resize resize = {.is_bicubic = is_bicubic, .precision = precision};
    int is_transposed = crop->is_transposed;
    Side *sides[] = {is_transposed ? &resize.down : &resize.across,
                     is_transposed ? &resize.across : &resize.down};
    resize.is_flipped = crop->is_flipped, resize.is_transposed = is_transposed;
    for (int i = 0; i < 2; i++) {
        int from = crop->box[i + 2] - crop->box[i], to = crop->resized[i], first = crop->window[i];
        if (size < 1 || first < 0 || first > to - size) from = 0;
        *sides[i] = (Side){from, to, first, size};
    }
    return resize;
}

/* Write what of the box the window is made of. */
static void find_needed(const Resize *resize, const int32_t *box, int32_t *needed) {
    int is_transposed = resize->is_transposed;
    const Side *sides[] = {is_transposed ? &resize->down : &resize->across,
                           is_transposed ? &resize->across : &resize->down};
    for (int i = 0; i < 2; i++) {
        double support = support_of(sides[i], resize->is_bicubic);
        needed[i] = box[i] + start_of(sides[i], sides[i]->first, support);
        needed[i + 2] = box[i] + end_of(sides[i], sides[i]->first + sides[i]->count - 1, support);
    }
}

static int read_any_header(Header *header, const uint8_t *content, size_t num_bytes) {
    if (is_raw(content, num_bytes)) return read_raw_header(header, content, num_bytes);
    return read_header(header, content, num_bytes);
}

/* out: (3, size, size).  Return DONE, or why there is nothing in it. */
static int crop_one(Decoder *decoder, const uint8_t *content, size_t num_bytes, const Crop *crop,
                    const Resize *resize, uint8_t *out) {
    Header header;
    Region region = {.header = &header, .decoder = decoder};
    int32_t box[4];
    int status = read_any_header(&header, content, num_bytes);
    if (status || (status = make_region(&region, crop->box))) return status;
    if (resize->across.from < 1 || resize->down.from < 1) return UNSUPPORTED;
    find_needed(resize, crop->box, box);
    if ((status = make_region(&region, box))) return status;
    if (header.num_components) {
        if ((status = make_tables(decoder, &header, num_bytes))) return status;
        if (reserve(&region, num_bytes, box, resize)) return NO_MEMORY;
        if ((status = read_region(&region, content, num_bytes))) return status;
    } else {
        region.raw = content + header.scan_start;
        if (reserve(&region, 0, box, resize)) return NO_MEMORY;
    }
    int left = box[0] - crop->box[0], top = box[1] - crop->box[1], is_transposed = resize->is_transposed;
    start_resampler(&region.resampler, resize, is_transposed ? top : left, is_transposed ? left : top);
    resample(&region, resize, box, out);
    return DONE;
}

/* ---- what is called from outside ---- */

Decoder *VARIANT(new_decoder)(void) { return calloc(1, sizeof(Decoder)); }

void VARIANT(free_decoder)(Decoder *decoder) {
    if (decoder) drop_arena(&decoder->arena);
    free(decoder);
}

/* Write width, height and whether there is unusual metadata to *facts*; width 0: unsupported. */
void VARIANT(measure)(const uint8_t *const *contents, const int64_t *num_bytes, int count, int32_t *facts) {
    for (int i = 0; i < count; i++, facts += 3) {
        Header header;
        int status = read_any_header(&header, contents[i], (size_t)num_bytes[i]);
        facts[0] = status ? 0 : header.width, facts[1] = header.height;
        facts[2] = header.has_unusual_metadata;
    }
}

/* Write (3, size, size) bytes to each of *outs*, and DONE or why not to each of *statuses*.
 * precision: of weights, in bits of their fraction; 0: as torch has it, for windows that are all.
 */
void VARIANT(crop_all)(Decoder *decoder, const uint8_t *const *contents, const int64_t *num_bytes,
              const Crop *crops, int count, int size, int is_bicubic, int precision,
              uint8_t *const *outs, int32_t *statuses) {
    for (int i = 0; i < count; i++) {
        Resize resize = resize_of(&crops[i], size, is_bicubic, precision);
        statuses[i] = crop_one(decoder, contents[i], (size_t)num_bytes[i], &crops[i], &resize,
                               outs[i]);
        if (decoder->arena.capacity > MAX_KEPT) drop_arena(&decoder->arena);
    }
}

#ifndef USE_AVX2
/* Whether crop_avx2.c may be called on this processor. */
int has_avx2(void) {
#if defined(__x86_64__)
    __builtin_cpu_init();
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("bmi2");
#else
    return 0;
#endif
}
#endif
