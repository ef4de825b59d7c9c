/* Plain JPEGs -> crops of one size: decoded, resized, flipped; many with one call.
 *
 * Plain: Huffman-coded from top to bottom in one scan, 8 bits, grey or YCbCr at 4:4:4, 4:2:2 or
 * 4:2:0, and nothing odd about it.  Pixels are those of libjpeg-turbo (its accurate integer
 * transform, its triangle filter for chroma) and of torch's resampling, to the bit: the tests
 * compare them.  Whatever is not plain, is damaged, or might leave the 16 bits of libjpeg-turbo's
 * vector code is refused, and the caller takes libjpeg-turbo.  So a refusal costs time, and changes
 * no result.
 *
 * Only what a crop needs is done: rows below it are not read; blocks beside it are read, since only
 * reading tells where the next one begins, but not transformed; and where restart markers divide
 * the rows into tiles, those beside it are not even read.
 *
 * Nothing is trusted: every read and write is checked against the ends that the caller gave.
 */
#include "region.h"

#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "pixels are kept in the byte order of x86 and ARM"
#endif

enum { MAX_KEPT = 1 << 26 }; /* bytes that a thread keeps from picture to picture */

/* What is asked for: left, top, right and bottom of a box, and whether it is flipped. */
typedef struct {
    int32_t box[4], is_flipped;
} Crop;

/* One row of the region -> its pixels. */
static void make_pixels(const Region *region, const int32_t *box, int y, uint32_t *pixels) {
    int left = box[0], width = box[2] - box[0];
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

/* out: (3, size, size).  Return DONE, or why there is nothing in it. */
static int crop_one(Decoder *decoder, const uint8_t *content, size_t num_bytes, const Crop *crop,
                    int size, int is_bicubic, uint8_t *out) {
    Header header;
    Region region = {.header = &header, .decoder = decoder};
    const int32_t *box = crop->box;
    Resize resize = {{box[2] - box[0], size, 0, size},
                     {box[3] - box[1], size, 0, size},
                     is_bicubic,
                     crop->is_flipped,
                     0};
    int status = read_header(&header, content, num_bytes), num_taken = 0;
    if (status || (status = make_region(&region, box))) return status;
    if ((status = make_tables(decoder, &header))) return status;
    if (reserve(&region, num_bytes, box, &resize)) return NO_MEMORY;
    if ((status = read_region(&region, content, num_bytes))) return status;
    start_resampler(&region.resampler, &resize, 0, 0);
    for (int y = 0; y < size; y++) {
        int needed = num_rows_for(&region.resampler, y);
        for (; num_taken < needed; num_taken += ROWS_AT_ONCE)
            resample_rows(&region, box, num_taken);
        write_planes(&region.resampler, y, (size_t)size * size, out + (size_t)y * size);
    }
    return DONE;
}

/* ---- what is called from outside ---- */

Decoder *new_decoder(void) { return calloc(1, sizeof(Decoder)); }

void free_decoder(Decoder *decoder) {
    if (decoder) drop_room(decoder);
    free(decoder);
}

/* Write width, height and whether there is odd metadata to *facts*; width 0: not plain. */
void measure(const uint8_t *const *contents, const int64_t *num_bytes, int count, int32_t *facts) {
    for (int i = 0; i < count; i++, facts += 3) {
        Header header;
        int status = read_header(&header, contents[i], (size_t)num_bytes[i]);
        facts[0] = status ? 0 : header.width, facts[1] = header.height;
        facts[2] = header.has_odd_metadata;
    }
}

/* Write (3, size, size) bytes to each of *outs*, and DONE or why not to each of *statuses*. */
void crop_all(Decoder *decoder, const uint8_t *const *contents, const int64_t *num_bytes,
              const Crop *crops, int count, int size, int is_bicubic, uint8_t *const *outs,
              int32_t *statuses) {
    for (int i = 0; i < count; i++) {
        statuses[i] = crop_one(decoder, contents[i], (size_t)num_bytes[i], &crops[i], size,
                               is_bicubic, outs[i]);
        if (decoder->capacity > MAX_KEPT) drop_room(decoder);
    }
}
