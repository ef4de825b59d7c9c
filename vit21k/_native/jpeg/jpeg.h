#ifndef JPEG_H
#define JPEG_H
/* Numbers that all files here share: how work ends, and those of ITU-T T.81. */

enum { DONE = 0, UNSUPPORTED = 1, DAMAGED = 2, NO_MEMORY = 3 };
enum { BLOCK = 64, MAX_COMPONENTS = 3, NUM_SLOTS = 4 };
enum { SOF0 = 0xC0, SOF1 = 0xC1, DHT = 0xC4, RST0 = 0xD0, EOI = 0xD9, SOS = 0xDA, DQT = 0xDB };
enum { DRI = 0xDD, APP0 = 0xE0, APP2 = 0xE2, APP13 = 0xED, APP14 = 0xEE, APP15 = 0xEF, COM = 0xFE };

#endif
