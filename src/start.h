/*
 * start.h
 *		Starting sagas: for those who start them otherwise than by
 *		saga.start() (schedules, parents, operator's verbs).
 */
#ifndef SAGA_START_H
#define SAGA_START_H

#include "postgres.h"

#include "utils/jsonb.h"
#include "utils/timestamp.h"
#include "utils/uuid.h"

#include "definition.h"
#include "rows.h"

typedef enum SagaOnConflict
{
	SAGA_CONFLICT_RETURN,
	SAGA_CONFLICT_ERROR,
	SAGA_CONFLICT_RESTART,
} SagaOnConflict;

/* How a saga is started; what is the same for all sagas of one call. */
typedef struct SagaStartOptions
{
	SagaDefinition *def;
	SagaOnConflict on_conflict;
	TimestampTz start_at;		/* 0: at once */
	int			priority;
	Interval   *deadline;		/* after the start, or NULL */
	TimestampTz deadline_at;	/* absolute; 0: as 'deadline' or the
								 * definition says; DT_NOEND: none */
	text	   *correlation;
	Jsonb	   *labels;
	const pg_uuid_t *parent_id; /* of a sub-saga */
	const char *parent_step;
	int			depth;			/* parents above it */
	const pg_uuid_t *copy_of;	/* restarted or forked from */
	SagaProtocol protocol;
	Oid			started_by;
} SagaStartOptions;

/* Its row in saga.instance, as it stands with the rest of the transaction. */
extern void saga_start_insert(SagaTable *instances, const SagaStartOptions *o,
							  const pg_uuid_t *id, Jsonb *input, text *key);

/*
 * One saga, with the rights of the current user: its input is checked, and
 * its key is claimed.  True if it is new; *id is the one that has the key.
 */
extern bool saga_start_one(SagaTable *instances, const SagaStartOptions *o,
						   Jsonb *input, text *key, pg_uuid_t *id);

/* A new id: UUIDv7, ascending within a session. */
extern void saga_new_id(pg_uuid_t *id);

/*
 * The definition, locked against being dropped until the transaction ends.
 * 42704 if there is none, 42501 if the current user may not start it.
 */
extern SagaDefinition *saga_definition_to_start(const char *name, int version);

#endif							/* SAGA_START_H */
