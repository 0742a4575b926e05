/*
 * semantic_lock.h
 *		What isolation.c needs of semantic_lock.c.
 */
#ifndef SAGA_SEMANTIC_LOCK_H
#define SAGA_SEMANTIC_LOCK_H

#include "postgres.h"

/*
 * The sagas of this uuid[] have ended: their locks go to those that wait
 * first, who are woken at commit.  Inside SPI_connect().
 */
extern void saga_locks_release(Datum ids);

/* Raise an error if the action that runs has asked to wait. */
extern void saga_lock_raise(void);

#endif							/* SAGA_SEMANTIC_LOCK_H */
