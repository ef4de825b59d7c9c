/* Crops of JPEGs by crop.c and by libjpeg-turbo's jpeg_crop_scanline and jpeg_skip_scanlines.
 *
 * Both decode to four bytes a pixel, with the accurate transform and the triangle filter, and where
 * a crop is resized both give their rows to the resampler of crop.c as soon as it needs them.  Built
 * and called by tools/bench/bench_crop_decoder.py.
 */
#if defined(__x86_64__) && !defined(PORTABLE)
#include "../../../vit21k/_native/jpeg/crop_avx2.c"
#else
#include "../../../vit21k/_native/jpeg/crop.c"
#endif

#include <setjmp.h>
#include <stdio.h>
#include <time.h>

#include <jpeglib.h>

typedef struct {
    const uint8_t *const *contents;
    const int64_t *num_bytes;
    const Crop *crops;
    int count, size; /* size: of the result; 0: decode only */
    uint8_t *out;    /* results, (3, size, size) each */
    uint8_t *is_done;
} Work;

typedef struct {
    struct jpeg_error_mgr manager;
    jmp_buf place;
} Errors;

typedef struct {
    struct jpeg_decompress_struct jpeg;
    Errors errors;
    Decoder decoder; /* its arena holds pixels and the resampler */
    uint32_t *pixels;
    size_t num_pixels;
} Turbo;

static double cpu_seconds(void) {
    struct timespec time;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time);
    return (double)time.tv_sec + 1e-9 * (double)time.tv_nsec;
}

static uint32_t *enlarged(uint32_t *pixels, size_t *num_pixels, size_t needed) {
    if (needed <= *num_pixels) return pixels;
    free(pixels);
    *num_pixels = needed;
    return malloc(needed * sizeof *pixels);
}

/* ---- crop.c ---- */

static int decode_ours(Decoder *decoder, const uint8_t *content, size_t num_bytes, const Crop *crop,
                       uint32_t **pixels, size_t *num_pixels) {
    Header header;
    Region region = {.header = &header, .decoder = decoder};
    Resize resize = resize_of(crop, 1, 0, 0);
    int status = read_header(&header, content, num_bytes), width = crop->box[2] - crop->box[0];
    if (status || (status = make_region(&region, crop->box))) return status;
    if ((status = make_tables(decoder, &header, num_bytes))) return status;
    if (reserve(&region, num_bytes, crop->box, &resize)) return NO_MEMORY;
    if ((status = read_region(&region, content, num_bytes))) return status;
    size_t stride = ((size_t)width + 31) & ~(size_t)15;
    *pixels = enlarged(*pixels, num_pixels, stride * (size_t)(crop->box[3] - crop->box[1]));
    for (int y = crop->box[1]; y < crop->box[3]; y++)
        make_pixels(&region, crop->box, y, *pixels + stride * (size_t)(y - crop->box[1]));
    return DONE;
}

double run_ours(const Work *work) {
    Decoder *decoder = VARIANT(new_decoder)();
    uint32_t *pixels = NULL;
    size_t num_pixels = 0, num_out = 3 * (size_t)work->size * (size_t)work->size;
    double start = cpu_seconds();
    for (int i = 0; i < work->count; i++) {
        const uint8_t *content = work->contents[i];
        size_t num_bytes = (size_t)work->num_bytes[i];
        Resize resize = resize_of(&work->crops[i], work->size, 0, 0);
        int status = work->size
            ? crop_one(decoder, content, num_bytes, &work->crops[i], &resize, work->out + num_out * (size_t)i)
            : decode_ours(decoder, content, num_bytes, &work->crops[i], &pixels, &num_pixels);
        work->is_done[i] = status == DONE;
    }
    double seconds = cpu_seconds() - start;
    free(pixels);
    VARIANT(free_decoder)(decoder);
    return seconds;
}

/* ---- libjpeg-turbo ---- */

static void fail(j_common_ptr jpeg) { longjmp(((Errors *)jpeg->err)->place, 1); }
static void say_nothing(j_common_ptr jpeg, int level) { (void)jpeg, (void)level; }

/* Read the next *count* rows to *rows*. */
static void read_lines(Turbo *turbo, uint32_t *const *rows, int count) {
    JSAMPROW lines[ROWS_AT_ONCE];
    for (int i = 0; i < count; i++) lines[i] = (JSAMPROW)rows[i];
    for (int read = 0; read < count;)
        read += (int)jpeg_read_scanlines(&turbo->jpeg, lines + read, (JDIMENSION)(count - read));
}

/* Read *height* rows to the pixels. */
static void decode_lines(Turbo *turbo, int height, size_t stride) {
    turbo->pixels = enlarged(turbo->pixels, &turbo->num_pixels, stride * (size_t)height);
    for (int y = 0; y < height; y += ROWS_AT_ONCE) {
        uint32_t *rows[ROWS_AT_ONCE];
        int count = at_most(ROWS_AT_ONCE, height - y);
        for (int i = 0; i < count; i++) rows[i] = turbo->pixels + stride * (size_t)(y + i);
        read_lines(turbo, rows, count);
    }
}

/* Read the rows of the crop, which is *shift* pixels inside them, and resize it. */
static void resize_lines(Turbo *turbo, const Crop *crop, int size, int shift, size_t stride, uint8_t *out) {
    Resize resize = resize_of(crop, size, 0, 0);
    Arena *arena = &turbo->decoder.arena;
    Resampler resampler;
    int width = crop->box[2] - crop->box[0], height = crop->box[3] - crop->box[1], num_taken = 0;
    for (int is_second = 0; is_second < 2; is_second++) {
        empty(arena);
        lay_out_resampler(&resampler, arena, &resize, width, height);
        if (arena->used <= arena->capacity) break;
        enlarge(arena);
    }
    turbo->pixels = enlarged(turbo->pixels, &turbo->num_pixels, stride * ROWS_AT_ONCE);
    start_resampler(&resampler, &resize, 0, 0);
    for (int y = 0; y < size; y++) {
        int needed = num_rows_for(&resampler, y);
        for (; num_taken < needed; num_taken += ROWS_AT_ONCE) {
            uint32_t *lines[ROWS_AT_ONCE];
            const uint32_t *rows[ROWS_AT_ONCE];
            for (int i = 0; i < ROWS_AT_ONCE; i++) {
                lines[i] = turbo->pixels + stride * (size_t)i;
                rows[i] = lines[i] + shift;
            }
            read_lines(turbo, lines, at_most(ROWS_AT_ONCE, height - num_taken));
            take_rows(&resampler, rows, num_taken);
        }
        write_planes(&resampler, y, (size_t)size * (size_t)size, out + (size_t)y * (size_t)size);
    }
}

/* Columns that interpolation of chroma needs are read on both sides. */
static int crop_by_turbo(Turbo *turbo, const uint8_t *content, size_t num_bytes, const Crop *crop, int size,
                         uint8_t *out) {
    struct jpeg_decompress_struct *jpeg = &turbo->jpeg;
    if (setjmp(turbo->errors.place)) {
        jpeg_abort_decompress(jpeg);
        return DAMAGED;
    }
    jpeg_mem_src(jpeg, content, (unsigned long)num_bytes);
    jpeg_read_header(jpeg, TRUE);
    jpeg->out_color_space = JCS_EXT_RGBX;
    jpeg->dct_method = JDCT_ISLOW;
    jpeg_start_decompress(jpeg);
    int first = at_least(crop->box[0] - MARGIN, 0);
    int end = at_most(crop->box[2] + MARGIN, (int)jpeg->output_width);
    JDIMENSION left = (JDIMENSION)first, width = (JDIMENSION)(end - first);
    jpeg_crop_scanline(jpeg, &left, &width);
    if (crop->box[1]) jpeg_skip_scanlines(jpeg, (JDIMENSION)crop->box[1]);
    size_t stride = ((size_t)width + 31) & ~(size_t)15;
    if (size) resize_lines(turbo, crop, size, crop->box[0] - (int)left, stride, out);
    else decode_lines(turbo, crop->box[3] - crop->box[1], stride);
    jpeg_abort_decompress(jpeg);
    return DONE;
}

double run_turbo(const Work *work) {
    Turbo *turbo = calloc(1, sizeof *turbo);
    size_t num_out = 3 * (size_t)work->size * (size_t)work->size;
    turbo->jpeg.err = jpeg_std_error(&turbo->errors.manager);
    turbo->errors.manager.error_exit = fail;
    turbo->errors.manager.emit_message = say_nothing;
    jpeg_create_decompress(&turbo->jpeg);
    double start = cpu_seconds();
    for (int i = 0; i < work->count; i++)
        work->is_done[i] = crop_by_turbo(turbo, work->contents[i], (size_t)work->num_bytes[i], &work->crops[i],
                                         work->size, work->out + num_out * (size_t)i) == DONE;
    double seconds = cpu_seconds() - start;
    jpeg_destroy_decompress(&turbo->jpeg);
    drop_arena(&turbo->decoder.arena);
    free(turbo->pixels);
    free(turbo);
    return seconds;
}
