/*
 * pure.h
 *		Ground for the files that decide and never act (graph.c, machine.c).
 *
 * They compile with and without the server: inside it they take its types,
 * outside it (simulator, fuzzers, replay tests; -DSAGA_STANDALONE) the same
 * names are defined here.  Nothing in such a file may read a clock, do I/O,
 * raise an error or allocate other than through the SagaArena it is given.
 */
#ifndef SAGA_PURE_H
#define SAGA_PURE_H

#ifdef SAGA_STANDALONE

#include <assert.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

typedef uint8_t uint8;
typedef int16_t int16;
typedef int32_t int32;
typedef uint32_t uint32;
typedef int64_t int64;
typedef uint64_t uint64;

#define Assert(condition) assert(condition)
#define Min(x, y) ((x) < (y) ? (x) : (y))
#define Max(x, y) ((x) > (y) ? (x) : (y))

#else

#include "postgres.h"

#endif

/* The only way pure code obtains memory: zeroed, freed by its owner as one. */
typedef struct SagaArena
{
	void	   *(*alloc) (struct SagaArena *arena, size_t size);
	void	   *context;
} SagaArena;

/* Times are microseconds on the database's clock; NEVER is later than all. */
typedef int64 SagaTime;

#define SAGA_NEVER	INT64_C(0x7fffffffffffffff)
#define SAGA_SECOND	INT64_C(1000000)

#endif							/* SAGA_PURE_H */
