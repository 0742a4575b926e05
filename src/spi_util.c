/*
 * spi_util.c
 *		Changing whose rights code runs with (see spi_util.h).
 *
 * The one place that switches the user id: sessions that write our tables,
 * define's analysis of local actions, and executors that run them all come
 * here.  Owns nothing and keeps nothing between calls.
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "access/xact.h"
#include "catalog/namespace.h"
#include "catalog/pg_class.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "utils/guc.h"
#include "utils/lsyscache.h"
#include "utils/resowner.h"
#include "utils/syscache.h"

#include "compat.h"
#include "spi_util.h"

Oid
saga_relation_oid(const char *name)
{
	Oid			schema = get_namespace_oid("saga", true);
	Oid			relid = InvalidOid;

	if (OidIsValid(schema))
		relid = get_relname_relid(name, schema);
	if (!OidIsValid(relid))
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_TABLE),
				 errmsg("relation \"saga.%s\" does not exist", name),
				 errhint("Run CREATE EXTENSION saga, or ALTER EXTENSION saga UPDATE after an upgrade of the library.")));
	return relid;
}

/* Our tables belong to the role that created the extension. */
static Oid
extension_owner(void)
{
	HeapTuple	tuple;
	Oid			owner;

	tuple = SearchSysCache1(RELOID,
							ObjectIdGetDatum(saga_relation_oid("definition")));
	if (!HeapTupleIsValid(tuple))
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_TABLE),
				 errmsg("extension \"saga\" is being dropped")));
	owner = ((Form_pg_class) GETSTRUCT(tuple))->relowner;
	ReleaseSysCache(tuple);
	return owner;
}

static void
pin_search_path(const char *path)
{
	(void) set_config_option("search_path", path, PGC_USERSET, PGC_S_SESSION,
							 GUC_ACTION_SAVE, true, 0, false);
}

void
saga_as_extension_owner_begin(SagaUserSwitch *save)
{
	Oid			owner = extension_owner();

	GetUserIdAndSecContext(&save->userid, &save->sec_context);
	SetUserIdAndSecContext(owner,
						   save->sec_context | SECURITY_LOCAL_USERID_CHANGE);
	save->nestlevel = NewGUCNestLevel();
	pin_search_path("pg_catalog, pg_temp");
}

void
saga_as_extension_owner_end(const SagaUserSwitch *save)
{
	AtEOXact_GUC(false, save->nestlevel);
	SetUserIdAndSecContext(save->userid, save->sec_context);
}

void
saga_run_as_begin(Oid owner, const char *search_path, SagaUserSwitch *save)
{
	if (!SearchSysCacheExists1(AUTHOID, ObjectIdGetDatum(owner)))
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("the owner of the definition (role with OID %u) does not exist",
						owner),
				 errhint("Give the definition another owner with saga.alter_owner().")));

	GetUserIdAndSecContext(&save->userid, &save->sec_context);
	SetUserIdAndSecContext(owner,
						   save->sec_context | SECURITY_RESTRICTED_OPERATION);
	save->nestlevel = NewGUCNestLevel();

	/*
	 * pg_temp comes last, else names would be looked up among temporary
	 * tables first.  A path that already names it keeps its place.
	 */
	if (search_path == NULL || search_path[0] == '\0')
		pin_search_path("pg_temp");
	else
		pin_search_path(psprintf("%s, pg_temp", search_path));
}

void
saga_run_as_end(const SagaUserSwitch *save)
{
	AtEOXact_GUC(false, save->nestlevel);
	SetUserIdAndSecContext(save->userid, save->sec_context);
}

uint64
saga_spi_own(const char *sql, int nargs, Oid *types, Datum *values,
			 const char *nulls, Datum *first, bool *isnull)
{
	SagaUserSwitch save;
	uint64		processed;
	int			rc;

	saga_as_extension_owner_begin(&save);
	if (SPI_connect() != SPI_OK_CONNECT)
		elog(ERROR, "SPI_connect failed");
	rc = SPI_execute_with_args(sql, nargs, types, values, nulls, false, 0);
	if (rc < 0)
		elog(ERROR, "SPI_execute_with_args failed: %s",
			 SPI_result_code_string(rc));
	processed = SPI_processed;
	if (first != NULL)
	{
		*isnull = true;
		*first = (Datum) 0;
		if (SPI_tuptable != NULL && SPI_processed > 0)
			*first = SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc,
								   1, isnull);
	}
	SPI_finish();
	saga_as_extension_owner_end(&save);
	return processed;
}

static ErrorData *
run_subtransaction(void (*fn) (void *arg), void *arg, bool keep)
{
	MemoryContext context = CurrentMemoryContext;
	ResourceOwner owner = CurrentResourceOwner;
	ErrorData  *volatile error = NULL;

	BeginInternalSubTransaction(NULL);
	MemoryContextSwitchTo(context);
	PG_TRY();
	{
		fn(arg);
		MemoryContextSwitchTo(context);
		if (keep)
			ReleaseCurrentSubTransaction();
		else
			RollbackAndReleaseCurrentSubTransaction();
	}
	PG_CATCH();
	{
		MemoryContextSwitchTo(context);
		error = CopyErrorData();
		FlushErrorState();
		RollbackAndReleaseCurrentSubTransaction();
	}
	PG_END_TRY();
	MemoryContextSwitchTo(context);
	CurrentResourceOwner = owner;
	return error;
}

ErrorData *
saga_in_subtransaction(void (*fn) (void *arg), void *arg)
{
	return run_subtransaction(fn, arg, true);
}

ErrorData *
saga_try(void (*fn) (void *arg), void *arg)
{
	ErrorData  *error = run_subtransaction(fn, arg, false);

	if (error != NULL &&
		(error->sqlerrcode == ERRCODE_QUERY_CANCELED ||
		 error->sqlerrcode == ERRCODE_ADMIN_SHUTDOWN ||
		 error->sqlerrcode == ERRCODE_OUT_OF_MEMORY))
		ReThrowError(error);
	return error;
}
