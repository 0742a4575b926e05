/*
 * verbs.h
 *		A session looks at a saga it wants to act on.
 */
#ifndef SAGA_VERBS_H
#define SAGA_VERBS_H

#include "postgres.h"

#include "utils/uuid.h"

typedef struct SagaLooked
{
	int64		definition_id;
	char	   *name;			/* of the definition */
	bool		ended;
} SagaLooked;

/*
 * As committed now, whatever snapshot the caller has.  42704 if there is no
 * such saga, 42501 without the privilege on its definition.
 */
extern void saga_look(const pg_uuid_t *id, const char *privilege, SagaLooked *saga);

/* Is there one?  The same without a right and without an error. */
extern bool saga_look_quietly(const pg_uuid_t *id, SagaLooked *saga);

/* Who acts, for the log: the session's user, and saga.operator. */
extern char *saga_actor(void);

#endif							/* SAGA_VERBS_H */
