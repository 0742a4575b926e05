/*
 * signals.h
 *		Signals on their way to a saga: what sessions, coordinators and
 *		executors agree on so that none is lost at a saga's end.
 */
#ifndef SAGA_SIGNALS_H
#define SAGA_SIGNALS_H

#include "postgres.h"

#include "utils/uuid.h"

/*
 * Until the end of the transaction no signal for this saga can be left behind.
 * False, at once, if one is under way in a transaction that has not ended.
 * What is committed must be looked for afterwards, with a new snapshot.
 */
extern bool saga_end_lock(const pg_uuid_t *id);

/* The same, and false if one is committed and not taken.  Needs SPI. */
extern bool saga_end_allowed(const pg_uuid_t *id);

/*
 * In a start with a key: signals that were kept for the key go to the saga.
 * The lock comes before the key is looked up.
 */
extern void saga_kept_signals_lock(const char *definition, text *key);
extern void saga_kept_signals_deliver(const char *definition, text *key,
									  const pg_uuid_t *id);

#endif							/* SAGA_SIGNALS_H */
