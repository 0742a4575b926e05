/*
 * compat.h
 *		Every difference between the supported server versions (15 to 18).
 *		PG_VERSION_NUM is tested here and nowhere else.
 */
#ifndef SAGA_COMPAT_H
#define SAGA_COMPAT_H

#include "postgres.h"

#if PG_VERSION_NUM < 150000
#error "saga needs PostgreSQL 15 or later"
#endif

#if PG_VERSION_NUM >= 170000
#include "storage/procnumber.h"
#include "utils/wait_event.h"
#else
#include "pgstat.h"
#include "utils/wait_event.h"
#endif

/* Wait events: named from 17 on, the shared "Extension" before. */
#if PG_VERSION_NUM >= 170000
#define saga_wait_event(name) WaitEventExtensionNew(name)
#else
#define saga_wait_event(name) PG_WAIT_EXTENSION
#endif

#if PG_VERSION_NUM >= 180000
#define SAGA_MODULE_MAGIC PG_MODULE_MAGIC_EXT(.name = "saga", .version = "1.0")
#else
#define SAGA_MODULE_MAGIC PG_MODULE_MAGIC
#endif

/* A wait-event set that lives as long as its memory context. */
#if PG_VERSION_NUM >= 170000
#define saga_create_wait_event_set(context, n) \
	CreateWaitEventSet(NULL, (n))
#else
#define saga_create_wait_event_set(context, n) \
	CreateWaitEventSet((context), (n))
#endif

/* Are synchronous standbys configured?  (Needs walsender_private.h.) */
#ifdef SYNC_STANDBY_DEFINED
#define saga_sync_standbys_defined() \
	((((volatile WalSndCtlData *) WalSndCtl)->sync_standbys_status & SYNC_STANDBY_DEFINED) != 0)
#else
#define saga_sync_standbys_defined() \
	(((volatile WalSndCtlData *) WalSndCtl)->sync_standbys_defined)
#endif

/* Index entries of a row just written; the list is of rechecks. */
#if PG_VERSION_NUM >= 160000
#define saga_ExecInsertIndexTuples(rri, slot, estate) \
	ExecInsertIndexTuples(rri, slot, estate, false, false, NULL, NIL, false)
#else
#define saga_ExecInsertIndexTuples(rri, slot, estate) \
	ExecInsertIndexTuples(rri, slot, estate, false, false, NULL, NIL)
#endif

/* Update one row; do_indexes runs when the update was not heap-only. */
#if PG_VERSION_NUM >= 160000
#define saga_simple_update(rel, tid, slot, snapshot, do_indexes) \
	do { \
		TU_UpdateIndexes which_; \
		simple_table_tuple_update(rel, tid, slot, snapshot, &which_); \
		if (which_ != TU_None) \
			do_indexes; \
	} while (0)
#else
#define saga_simple_update(rel, tid, slot, snapshot, do_indexes) \
	do { \
		bool		which_; \
		simple_table_tuple_update(rel, tid, slot, snapshot, &which_); \
		if (which_) \
			do_indexes; \
	} while (0)
#endif

/* Query trees: Vars of joins, of GROUP BY (18), and permission entries. */
#if PG_VERSION_NUM >= 160000
#define saga_flatten_join_alias_vars(query, node) \
	flatten_join_alias_vars(NULL, (query), (node))
#define saga_rte_forget_perminfo(rte) ((rte)->perminfoindex = 0)
#else
#define saga_flatten_join_alias_vars(query, node) \
	flatten_join_alias_vars((query), (node))
#define saga_rte_forget_perminfo(rte) \
	((rte)->checkAsUser = InvalidOid)
#endif

#if PG_VERSION_NUM >= 180000
#define saga_flatten_group(query) \
	do { \
		if ((query)->hasGroupRTE) \
		{ \
			(query)->targetList = (List *) \
				flatten_group_exprs(NULL, (query), (Node *) (query)->targetList); \
			(query)->havingQual = \
				flatten_group_exprs(NULL, (query), (query)->havingQual); \
			(query)->hasGroupRTE = false; \
		} \
	} while (0)
#else
#define saga_flatten_group(query) ((void) 0)
#endif

/* Columns of outdesc from those of indesc, NULL if they are the same. */
#if PG_VERSION_NUM >= 160000
#define saga_attrmap_by_name(indesc, outdesc) \
	build_attrmap_by_name_if_req((indesc), (outdesc), true)
#else
#define saga_attrmap_by_name(indesc, outdesc) \
	build_attrmap_by_name_if_req((indesc), (outdesc))
#endif

/* Replication slots; these names are used by feed.c only, with its includes. */
#if PG_VERSION_NUM >= 170000
#define saga_slot_create(name) \
	ReplicationSlotCreate((name), true, RS_EPHEMERAL, false, false, false)
#else
#define saga_slot_create(name) \
	ReplicationSlotCreate((name), true, RS_EPHEMERAL, false)
#endif

#if PG_VERSION_NUM >= 180000
#define saga_slot_acquire(name) ReplicationSlotAcquire((name), false, true)
#else
#define saga_slot_acquire(name) ReplicationSlotAcquire((name), false)
#endif

#if PG_VERSION_NUM >= 160000
#define saga_slot_invalidated(slot) ((slot)->data.invalidated != RS_INVAL_NONE)
#else
#define saga_slot_invalidated(slot) \
	XLogRecPtrIsInvalid((slot)->data.restart_lsn)
#endif

/* A message of no transaction; the caller flushes. */
#if PG_VERSION_NUM >= 170000
#define saga_log_message(prefix, message, size) \
	LogLogicalMessage((prefix), (message), (size), false, false)
#else
#define saga_log_message(prefix, message, size) \
	LogLogicalMessage((prefix), (message), (size), false)
#endif

/* The tuple of a decoded change, or NULL. */
#if PG_VERSION_NUM >= 170000
#define saga_change_tuple(buffer) (buffer)
#else
#define saga_change_tuple(buffer) ((buffer) ? &(buffer)->tuple : NULL)
#endif

/* May the role execute the function?  (Needs acl.h and pg_proc.h.) */
#if PG_VERSION_NUM >= 160000
#define saga_proc_aclcheck(function, role) \
	object_aclcheck(ProcedureRelationId, function, role, ACL_EXECUTE)
#else
#define saga_proc_aclcheck(function, role) \
	pg_proc_aclcheck(function, role, ACL_EXECUTE)
#endif

/* Room before a tuple can be asked for since 18. (Needs htup_details.h.) */
#if PG_VERSION_NUM >= 180000
#define saga_form_minimal_tuple(desc, values, nulls) \
	heap_form_minimal_tuple(desc, values, nulls, 0)
#else
#define saga_form_minimal_tuple(desc, values, nulls) \
	heap_form_minimal_tuple(desc, values, nulls)
#endif

#endif							/* SAGA_COMPAT_H */
