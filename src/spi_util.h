/*
 * spi_util.h
 *		Changing whose rights code runs with, and SQL on our own tables with
 *		the rights of the extension's owner.
 *
 * Nothing needs to be undone after an error: the end of the (sub)transaction
 * restores user id and settings.  So none of this needs PG_TRY.
 */
#ifndef SAGA_SPI_UTIL_H
#define SAGA_SPI_UTIL_H

#include "postgres.h"

/* What a begin function saves for its end function. */
typedef struct SagaUserSwitch
{
	Oid			userid;
	int			sec_context;
	int			nestlevel;
} SagaUserSwitch;

/*
 * As the extension's owner, search_path pinned: for statements of ours on our
 * own tables that the calling user has no right to touch.  Never around an
 * expression or text of the user's.
 */
extern void saga_as_extension_owner_begin(SagaUserSwitch *save);
extern void saga_as_extension_owner_end(const SagaUserSwitch *save);

/*
 * As the owner of a definition: his rights, the search_path stored with the
 * definition, settings reset by the end function, in a security-restricted
 * operation.  42704 if the role is gone.
 */
extern void saga_run_as_begin(Oid owner, const char *search_path,
							  SagaUserSwitch *save);
extern void saga_run_as_end(const SagaUserSwitch *save);

/*
 * One statement on our own tables, as the extension's owner.  Opens its own
 * SPI connection.  Returns the number of rows processed; if 'first' is not
 * NULL, the first column of the first row goes there (by-value types only)
 * and *isnull tells whether there was one.
 */
extern uint64 saga_spi_own(const char *sql, int nargs, Oid *types,
						   Datum *values, const char *nulls,
						   Datum *first, bool *isnull);

/*
 * Call fn(arg) in a subtransaction.  Returns the error it raised, in the
 * caller's memory context, or NULL: then what it did stays.
 */
extern ErrorData *saga_in_subtransaction(void (*fn) (void *arg), void *arg);

/*
 * Call fn(arg) in a subtransaction that is rolled back afterwards.  Returns
 * the error it raised, in the caller's memory context, or NULL.  Errors that
 * are nobody's fault (cancel, out of memory) are raised again.
 */
extern ErrorData *saga_try(void (*fn) (void *arg), void *arg);

/* A relation of schema saga; 42P01 with a hint if the extension is not there. */
extern Oid	saga_relation_oid(const char *name);

#endif							/* SAGA_SPI_UTIL_H */
