//! The behaviours of a virtio-fs daemon, each run against `nydusbox virtiofs` and the genuine nydusd.
//! What they are, and where the two differ and why, stands in `nydusbox_testkit::suite`.

use std::path::PathBuf;

use nydusbox_testkit::daemon::Program;
use nydusbox_testkit::peers::{Peer, require};
use nydusbox_testkit::suite::{self, Expectation};

/// Has the differences between the two daemons checked against nydusd itself.
const ASSERT_DIFFERENCES: &str = "NYDUSBOX_ASSERT_DIFFERENCES";

macro_rules! behaviours {
    (both { $($both:ident)* } ours { $($only:ident)* }) => {
        /// `nydusbox virtiofs`.
        mod ours {
            $(#[test] fn $both() { super::run_ours(stringify!($both)); })*
            $(#[test] fn $only() { super::run_ours(stringify!($only)); })*
        }

        /// nydusd 2.2.0, where the two behave alike.
        mod nydusd {
            $(#[test] fn $both() { super::run_nydusd(stringify!($both)); })*
        }

        /// nydusd 2.2.0, where the two differ: shows that they really do.
        mod nydusd_differs {
            $(#[test] fn $only() { super::assert_nydusd_differs(stringify!($only)); })*
        }

        #[test]
        fn every_behaviour_of_the_suite_is_a_test_here() {
            let listed = |expected_of_both: bool| {
                let of = |b: &&suite::Behaviour| (b.expectation == Expectation::Both) == expected_of_both;
                suite::BEHAVIOURS.iter().filter(of).map(|b| b.name).collect::<Vec<_>>()
            };
            assert_eq!([$(stringify!($both)),*].as_slice(), listed(true));
            assert_eq!([$(stringify!($only)),*].as_slice(), listed(false));
        }
    };
}

fn run_ours(name: &str) {
    suite::run(
        name,
        &Program::Nydusbox(PathBuf::from(env!("CARGO_BIN_EXE_nydusbox"))),
    );
}

fn run_nydusd(name: &str) {
    if let Ok(program) = require(Peer::Nydusd) {
        suite::run(name, &Program::Nydusd(program));
    }
}

fn assert_nydusd_differs(name: &str) {
    // Most of these end by a deadline, because nydusd hangs: minutes that tell nothing new until the table changes.
    if std::env::var_os(ASSERT_DIFFERENCES).is_none() {
        eprintln!("skipped: waits for nydusd to hang; set {ASSERT_DIFFERENCES}=1 when the table changes");
        return;
    }
    if let Ok(program) = require(Peer::Nydusd) {
        suite::assert_differs(name, &Program::Nydusd(program));
    }
}

behaviours! {
    both {
        api_tells_version_and_state
        api_lists_mounts
        api_refuses_a_second_mount_at_the_same_place
        api_refuses_to_unmount_what_is_not_there
        api_refuses_a_bad_configuration
        api_refuses_an_unknown_type_of_file_system
        api_refuses_a_bad_bootstrap
        api_refuses_bad_requests_by_status
        api_unmounts_and_mounts_again
        api_takes_mounts_at_the_same_time
        api_answers_while_a_mount_waits_for_its_backend
        files_are_written_and_read_at_any_offset
        files_have_holes_and_preallocation
        files_keep_attributes
        files_keep_extended_attributes
        files_belong_to_their_creator
        files_stay_readable_after_unlink
        files_move_in_requests_of_a_mebibyte_64_at_once
        names_are_made_moved_and_removed
        names_lead_to_the_right_errnos
        names_are_listed_completely_and_resumably
        names_do_not_lead_out_of_the_share
        files_of_a_mount_at_the_root_are_on_one_device
        image_v5_has_every_file_of_its_source
        image_v6_has_every_file_of_its_source
        image_keeps_extended_attributes
        image_is_read_only
        image_reads_64_at_once
        image_is_served_over_http_proxy
        image_is_served_from_a_registry
        image_never_shows_wrong_data_of_a_faulty_backend
        guest_needs_neither_event_idx_nor_indirect_descriptors
        guest_reuses_closed_handles
        guest_cannot_close_descriptors_of_the_daemon
        cold_reader_here_and_there_costs_its_chunks
        cold_killed_daemon_holds_nobody_up
        cold_cache_replaced_while_it_is_read_gives_no_wrong_byte
        cold_cache_with_wrong_bytes_is_found_out_and_filled_again
        cold_content_that_is_not_the_images_fails_the_read
        cold_cache_of_v6_with_wrong_bytes_is_found_out_and_filled_again
        cold_content_that_is_not_a_v6_images_fails_the_read
        cold_zran_blobs_are_shared
        stops_after_the_guest_left
    }
    ours {
        api_takes_a_body_of_a_mebibyte
        files_are_copied_on_the_host
        files_of_two_mounts_are_on_two_devices
        files_are_synced_when_the_guest_syncs
        files_without_a_name_get_one
        files_without_a_name_are_made_at_the_root_too
        files_are_made_where_a_group_of_their_creator_may
        files_have_attributes_of_any_name
        files_beyond_the_daemons_limit_are_refused
        files_are_read_only_if_the_mount_says_so
        metrics_count_what_the_guest_asked
        metrics_show_what_is_held
        metrics_go_with_their_mount
        image_switches_nothing_off_for_shares
        image_has_no_name_of_more_than_255_bytes
        image_shows_the_time_of_a_file_of_1970
        image_is_remounted_as_a_whole_or_not_at_all
        image_v5_reads_small_and_widened
        image_with_a_blob_elsewhere_is_not_mounted
        image_whose_bootstrap_is_truncated_fails_and_no_other_does
        image_mounts_end_at_255_with_a_clear_message
        guest_reboots_without_destroy
        guest_gets_all_it_can_use_after_one_that_could_little
        guest_reboots_with_requests_in_flight
        guest_leaves_and_a_new_one_comes
        guest_uses_several_request_queues
        guest_sends_hostile_chains_and_is_served_on
        guest_sends_hostile_chains_on_the_hiprio_queue
        guest_jumps_its_available_index
        guest_sends_headers_that_deserve_an_errno
        guest_asks_for_more_than_there_can_be
        guest_does_not_write_the_log
        frontend_sends_garbage_and_the_next_is_served
        frontend_breaks_off_in_the_middle
        held_reads_do_not_delay_a_getattr
        cold_daemons_share_what_they_fetch
        cold_reader_in_order_is_fetched_ahead_of
        cold_cache_without_room_does_not_fail_reads
        cold_cache_files_are_opened_once_and_only_data_is_mapped
        cold_cache_cut_while_it_is_read_gives_no_wrong_byte
        cold_cache_is_let_go_by_reads_that_an_unmount_overtakes
        cold_cache_truncated_under_the_daemon_is_filled_again
        cold_cache_that_a_power_cut_emptied_is_filled_again
        cold_cache_that_is_not_the_images_is_found_out_by_the_next_daemon
        cold_content_that_is_not_a_plain_v6_images_fails_the_read
        cold_batches_are_shared
        cold_batches_are_read_from_their_middle
        cold_batches_outlive_faults_and_truncation
        cold_zran_blobs_outlive_faults_and_truncation
        cold_zran_blob_that_is_too_short_fails_the_read
        cold_packed_blobs_without_room_fail_until_there_is_some
        cold_table_that_was_not_to_be_had_is_asked_for_again
        cold_table_damaged_in_the_cache_is_fetched_again
        cold_table_of_another_image_in_the_cache_is_fetched_again
        cold_mount_that_needs_room_on_a_full_disk_is_refused_and_the_others_go_on
        prefetch_takes_the_files_that_the_mount_names
        prefetch_takes_the_files_that_the_image_names
        prefetch_takes_everything_if_asked_to
        prefetch_never_goes_before_a_reader
        startup_fetches_what_a_program_needs
        startup_leaves_it_to_an_image_that_knows_better
        trace_has_what_is_read_first_of_v5
        trace_has_what_is_read_first_of_v6
        stops_before_a_guest_came
        stops_with_a_guest_connected
        stops_by_its_api
        stops_while_reads_are_held
    }
}
