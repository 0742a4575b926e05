/*
 * projection_explain.c
 *		saga.explain_projection(): how each part of a query would be kept.
 *
 * Runs in sessions, with the caller's rights; changes nothing.
 */
#include "postgres.h"

#include "access/sysattr.h"
#include "access/table.h"
#include "catalog/pg_class.h"
#include "catalog/pg_inherits.h"
#include "fmgr.h"
#include "funcapi.h"
#include "lib/stringinfo.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"

#include "compat.h"
#include "projection.h"
#include "projection_row.h"

PG_FUNCTION_INFO_V1(saga_explain_projection);

/*
 * Does the WAL tell what a row was before it was updated or deleted, in all
 * columns that the query uses?
 */
static bool
identity_covers(Relation rel, const SagaSource *source)
{
	Bitmapset  *identity;
	bool		covered = true;

	if (rel->rd_rel->relreplident == REPLICA_IDENTITY_FULL)
		return true;
	identity = RelationGetIndexAttrBitmap(rel, INDEX_ATTR_BITMAP_IDENTITY_KEY);
	for (int i = -1; covered && (i = bms_next_member(source->columns, i)) >= 0;)
	{
		/* partitions may have them in another order */
		AttrNumber	column = get_attnum(RelationGetRelid(rel),
										NameStr(TupleDescAttr(source->desc, i - 1)->attname));

		covered = bms_is_member(column - FirstLowInvalidHeapAttributeNumber, identity);
	}

	/* without any index, not even that a row went is told */
	return covered && !bms_is_empty(identity);
}

List *
saga_tables_without_identity(const SagaProgram *program, const Bitmapset *sources)
{
	List	   *lacking = NIL;

	for (int i = 0; i < list_length(program->sources); i++)
	{
		SagaSource *source = list_nth(program->sources, i);
		ListCell   *lt;

		if (sources != NULL && !bms_is_member(i, sources))
			continue;
		foreach(lt, find_all_inheritors(source->relid, AccessShareLock, NULL))
		{
			Relation	rel = table_open(lfirst_oid(lt), NoLock);

			if (rel->rd_rel->relkind == RELKIND_RELATION &&
				!identity_covers(rel, source))
				lacking = list_append_unique_oid(lacking, lfirst_oid(lt));
			table_close(rel, NoLock);
		}
	}
	return lacking;
}

/* explain_projection(query) -> (stage, class, what, reason, missing_index, replica_identity) */
Datum
saga_explain_projection(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;
	SagaProgram *program;
	ListCell   *lc;

	InitMaterializedSRF(fcinfo, 0);
	program = saga_program_build(text_to_cstring(PG_GETARG_TEXT_PP(0)), 0, NIL);
	foreach(lc, program->stages)
	{
		SagaStage  *stage = lfirst(lc);
		Datum		v[6];
		bool		n[6] = {0};
		StringInfoData text;
		ListCell   *li;

		v[0] = Int32GetDatum(stage->number);
		v[1] = CStringGetTextDatum(saga_class_name(stage->class));
		v[2] = CStringGetTextDatum(stage->what);
		n[3] = stage->reason == NULL;
		v[3] = n[3] ? (Datum) 0 : CStringGetTextDatum(stage->reason);

		initStringInfo(&text);
		foreach(li, stage->advice)
			appendStringInfo(&text, "%s%s", text.len ? "\n" : "", (char *) lfirst(li));
		n[4] = text.len == 0;
		v[4] = n[4] ? (Datum) 0 : CStringGetTextDatum(text.data);

		resetStringInfo(&text);
		if (!bms_is_empty(stage->sources))
			foreach(li, saga_tables_without_identity(program, stage->sources))
				appendStringInfo(&text, "%sALTER TABLE %s REPLICA IDENTITY FULL", text.len ? "\n" : "",
								 saga_projection_name(lfirst_oid(li)));
		n[5] = text.len == 0;
		v[5] = n[5] ? (Datum) 0 : CStringGetTextDatum(text.data);
		tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc, v, n);
	}
	return (Datum) 0;
}
