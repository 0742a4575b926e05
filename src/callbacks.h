/*
 * callbacks.h
 *		Steps whose answer comes later: their tokens, and saga.accepted().
 */
#ifndef SAGA_CALLBACKS_H
#define SAGA_CALLBACKS_H

#include "postgres.h"

#include "utils/uuid.h"

#include "machine.h"

/*
 * The token of one operation of one run of a step: the same in every attempt,
 * and not to be guessed.  Needs a transaction.
 */
extern char *saga_callback_token(const pg_uuid_t *saga_id, const char *step,
								 SagaOp op);

/*
 * In an executor, around a local action that may be taken on: may it call
 * saga.accepted(), and has it?
 */
extern bool saga_accepted_allowed;
extern bool saga_accepted_now;

#endif							/* SAGA_CALLBACKS_H */
