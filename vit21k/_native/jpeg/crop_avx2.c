/* crop.c once more, for processors with AVX2: `vit21k._native` chooses at run time. */
#if defined(__x86_64__)
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,bmi,bmi2,lzcnt,popcnt"))), apply_to = function)
#else
#pragma GCC target("avx2,bmi,bmi2,lzcnt,popcnt")
#endif
#define VARIANT(name) name##_avx2
#define USE_AVX2
#include "crop.c"
#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
