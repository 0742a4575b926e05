/*
 * rights.h
 *		Who may do what with a definition and its sagas.
 */
#ifndef SAGA_RIGHTS_H
#define SAGA_RIGHTS_H

#include "postgres.h"

#include "utils/array.h"

/* Privileges on a definition, as in saga.grant(). */
#define SAGA_PRIV_START		1
#define SAGA_PRIV_SIGNAL	2
#define SAGA_PRIV_SEE		4
#define SAGA_PRIV_OPERATE	8
#define SAGA_PRIV_ALL		15

/*
 * Has the role this privilege: superuser, owner or member of the owner,
 * grantee or member of one; saga_operator may operate and see everything,
 * saga_monitor see everything.  For a name that does not exist (any more),
 * only the last three and superusers.  22023 for an unknown privilege.
 */
extern bool saga_has_privilege(const char *definition, Oid role,
							   const char *priv);

/* 42501 unless the current user has it; 42704 for an unknown name. */
extern void saga_require_privilege(const char *definition, const char *priv);

/* Is the role the owner, a member of the owner, or a superuser? */
extern bool saga_may_change(Oid role, Oid owner);

/*
 * Local actions run with all rights of the owner; those of a superuser only
 * when saga.allow_superuser_steps is on.
 */
extern bool saga_owner_may_run_local(Oid owner);

/* Names to a mask; unknown ones: 22023. */
extern int	saga_privilege_mask(ArrayType *names);

#endif							/* SAGA_RIGHTS_H */
